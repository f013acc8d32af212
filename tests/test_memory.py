"""Memory that does not suffice: whoever says so, work goes on in smaller parts, and nothing else has changed."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import memory_processes
from malora_cli.adapters.routing import let_go_of_gates
from malora_cli.compare.planner import Planner
from malora_cli.compare.run import Crew
from malora_cli.data.batch import Packer, collate
from malora_cli.data.encoding import Encoder
from malora_cli.errors import RunError
from malora_cli.evals import predict as predict_module
from malora_cli.evals import subject
from malora_cli.evals.evaluate import Wanted, evaluate_run
from malora_cli.evals.predict import Generated, predict
from malora_cli.evals.store import answers_root
from malora_cli.export import cost as cost_module
from malora_cli.export.measuring import costs_of, uniform_gates
from malora_cli.export.static import static_lora
from malora_cli.modeling import load_base
from malora_cli.modeling import loss as loss_module
from malora_cli.modeling.heldout import held_out
from malora_cli.modeling.loss import target_logits, token_nats
from malora_cli.modeling.memory import Attempt, fitting, forget_peak, out_of_memory, peak_bytes
from malora_cli.modeling.modes import evaluating
from malora_cli.named import vocabulary
from malora_cli.train import conflict as conflict_module
from malora_cli.train import materials, measuring, probe
from malora_cli.train.conflict import gradient_conflict
from malora_cli.train.probe import measure_longest_step
from presets import routed
from test_loss import examples
from train_runs import SilentView, load, train_run, workplace

ACCELERATOR = getattr(torch, "AcceleratorError", RuntimeError)  # since PyTorch 2.8


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        ACCELERATOR("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("HIP out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:113] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ],
)
def test_every_way_of_saying_it_is_known(error: Exception) -> None:
    assert out_of_memory(error)
    with Attempt() as attempt:
        raise error
    assert attempt.out_of_memory


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("out of memory"), KeyboardInterrupt()])
def test_nothing_else_is_taken_for_it(error: BaseException) -> None:
    assert not out_of_memory(error)
    with pytest.raises(type(error)), Attempt():
        raise error


def test_gates_of_a_pass_that_was_cut_short_are_let_go() -> None:
    """They are handed on within a block, and their history is every activation before it."""

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = routed("mixlora")
    block = model.get_submodule("base_model.model.model.layers.1.self_attn.q_proj").malora_block["default"]
    handle = model.get_submodule("base_model.model.model.layers.1.self_attn.v_proj").register_forward_pre_hook(full)
    with Attempt() as attempt:
        token_nats(model, collate(examples()))
    assert attempt.out_of_memory
    gate = weakref.ref(block._gate_TE)
    let_go_of_gates(model)
    assert gate() is None
    handle.remove()
    token_nats(model, collate(examples())).sum().backward()


def test_what_an_attempt_held_is_free_when_it_is_left() -> None:
    """Or making room for the next one would free nothing."""
    held: list[weakref.ref[Tensor]] = []

    def work() -> None:
        activation = torch.ones(3)
        held.append(weakref.ref(activation))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with Attempt() as attempt:
        work()
    assert attempt.out_of_memory
    assert held[0]() is None


def test_work_is_halved_until_it_fits() -> None:
    tried: list[int] = []

    def work(packer: Packer) -> str:
        tried.append(packer.rows)
        if packer.rows > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    limit = 3
    assert fitting(work, Packer(12, 100), "here", fix="Do it.") == ("done", Packer(3, 25))
    assert tried == [12, 6, 3]
    limit = 0
    with pytest.raises(RunError, match=r"^here: a micro-batch of one row does not fit into memory. Do it.$"):
        fitting(work, Packer(2), "here", fix="Do it.")


# ---------------------------------------------------------------- without training


def limited(plain: Any, tokens: int) -> Any:
    """`token_nats` on a device with memory for so many tokens."""

    def nats(model: nn.Module, batch: Any) -> Tensor:
        if batch["input_ids"].numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(model, batch)

    return nats


class OneTask:
    """As much of a task as an evaluation and a comparison of gradients look at."""

    name, source = "task", "file"

    def __init__(self) -> None:
        self.train = self.validation = self

    def __len__(self) -> int:
        return len(examples())

    def sample(self, rows: int) -> range:
        return range(len(self))

    def examples(self, rows: range, task: int) -> list[Any]:
        return [examples()[row] for row in rows]


def test_an_evaluation_halves_and_leaves_the_model_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model = routed("malora")
    whole = held_out(model, [collate(examples())]).loss
    monkeypatch.setattr(loss_module, "token_nats", limited(token_nats, 24))
    event = measuring.evaluation(model, [OneTask()], Packer(4), rows=9, step=1, seconds=0)  # type: ignore[list-item]
    found = event.tasks["task"]
    assert (found.tokens, found.examples) == (whole.tokens, whole.examples)
    assert found.nats == pytest.approx(whole.nats, rel=1e-5)
    assert model.training


def test_training_goes_on_where_memory_does_not_suffice_to_measure_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = routed("malora"), cast(Any, OneTask())
    monkeypatch.setattr(loss_module, "token_nats", limited(token_nats, 3))
    monkeypatch.setattr(conflict_module, "token_nats", limited(token_nats, 3))
    small = r"a micro-batch of one row does not fit into memory. Training goes on without that. Set train.max_length"
    with pytest.warns(UserWarning, match=rf"^the validation rows of 'task' at step 7: {small}"):
        event = measuring.evaluation(model, [task], Packer(4), rows=9, step=7, seconds=0)
    assert (event.step, event.tasks, event.expert_load) == (7, {}, None)
    with pytest.warns(UserWarning, match=rf"^comparing the gradients of step 7: {small}"):
        assert measuring.conflict(model, [task, task], Packer(4), rows=9, step=7) is None
    assert all(module.training for module in model.modules())


def test_an_export_packs_by_tokens_and_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = routed("malora"), cast(Any, OneTask())
    loras = {"mean": static_lora(model, uniform_gates(model))}
    seen: list[int] = []
    whole = held_out(model, [collate(examples())]).loss.loss

    def counted(model: nn.Module, batch: Any) -> Tensor:
        seen.append(batch["input_ids"].numel())
        return limited(target_logits, 24)(model, batch)

    monkeypatch.setattr(cost_module, "target_logits", counted)
    assert costs_of(model, task, loras, None, Packer(99, 24))["mean"].routed == pytest.approx(whole, rel=1e-5)
    assert max(seen) <= 24
    assert len(seen) < 3 * len(examples()), "base, routed and merged, of several rows at once"
    assert costs_of(model, task, loras, None, Packer(99))["mean"].routed == pytest.approx(whole, rel=1e-5)
    monkeypatch.setattr(cost_module, "target_logits", limited(target_logits, 3))
    with pytest.raises(RunError, match=r"^rows of file: .* one row does not fit into memory\. Export on a device"):
        costs_of(model, task, loras, None, Packer(99))


def test_a_comparison_of_gradients_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = routed("malora", lora_dropout=0.5)
    tasks: Any = [OneTask(), OneTask()]
    whole = measuring.conflict(model, tasks, Packer(4), rows=9, step=1)
    monkeypatch.setattr(conflict_module, "token_nats", limited(token_nats, 24))
    halved = measuring.conflict(model, tasks, Packer(4), rows=9, step=1)
    for group, compared in whole.groups.items():
        assert halved.groups[group].norm == pytest.approx(compared.norm, rel=1e-4)
    assert all(module.training for module in model.modules())


def test_a_comparison_of_gradients_keeps_as_little_as_training() -> None:
    """Gradient checkpointing stays on, though dropout does not."""
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.nbytes
        return tensor

    model = routed("malora", lora_dropout=0.5)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable()
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found.append(gradient_conflict(model, [[collate(examples())]])["all"].norm)
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert kept[1] < kept[0] / 3


def test_modes_come_back_whatever_happens() -> None:
    model = routed("malora")
    model.get_submodule("base_model.model.lm_head").eval()
    before = [module.training for module in model.modules()]

    def fail() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [module.training for module in model.modules()] == before


def test_generating_halves_and_answers_alike(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    encoder = Encoder(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    prompts = [tokenizer(f"word {number}")["input_ids"] for number in range(16)]

    def answers() -> list[str]:
        return predict(model, encoder, prompts, max_new_tokens=4, batch=Packer(8))

    tried: list[int] = []
    plain, whole = predict_module.decode, answers()

    def crowded(model: Any, rows: Any, at_once: int) -> None:
        tried.append(at_once)
        if at_once > room:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        plain(model, rows, at_once)

    monkeypatch.setattr(predict_module, "decode", crowded)
    monkeypatch.setattr(predict_module, "_BATCHES", 1)
    room = 2
    assert answers() == whole
    assert tried == [8, 4, 2, 2], "the tokens that fit are remembered"
    room = 0
    with pytest.raises(RunError, match=r"^generating answers: a micro-batch of one row does not fit .* more memory.$"):
        answers()


def test_evaluating_a_run_keeps_to_the_tokens_of_a_micro_batch(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, few = workplace(tmp_path, tiny_model), ["train.steps=1", "method={name: lora, r: 2}"]
    record = train_run(recipe, *few, "model.dtype=bfloat16")
    sizes: list[int] = []

    def spy(model: nn.Module, batch: Any) -> Tensor:
        sizes.append(batch["input_ids"].numel())
        return token_nats(model, batch)

    monkeypatch.setattr(loss_module, "token_nats", spy)
    monkeypatch.setattr("malora_cli.evals.examine.generate_lots", nothing_said)
    settings = [*few, "model.dtype=bfloat16", "train.max_length=70", "train.micro_batch_tokens=70"]
    wanted = Wanted(split="validation")
    result = evaluate_run(record, load(recipe, *settings).recipe, wanted)
    assert 35 < max(sizes) <= 70
    shutil.rmtree(record.path / "eval")  # what was answered is not asked again
    shutil.rmtree(answers_root())
    at_once = evaluate_run(record, load(recipe, *few, "model.dtype=bfloat16").recipe, wanted, out=tmp_path / "once")
    assert max(sizes) > 70
    trained = record.metrics.evals()[-1].tasks
    for name, scores in at_once.tasks.items():
        # Multiplied as in training: the same number, but for what rows are packed together.
        assert scores.model.loss == pytest.approx(trained[name].loss, rel=1e-5)
        assert result.tasks[name].model.loss == pytest.approx(scores.model.loss, rel=1e-2)


def nothing_said(_model: Any, _encoder: Any, prompts: Any, **_: Any) -> Any:
    """Empty answers, in one lot."""
    yield [(number, Generated("", 0, "end")) for number in range(len(prompts))]


# ---------------------------------------------------------------- measuring the longest step


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`measure_longest_step` on four rows, without a mixture."""
    monkeypatch.setattr(probe, "longest_step", lambda _mixture: examples())
    train: Any = type("Settings", (), {"gradient_checkpointing": False})
    return lambda model: measure_longest_step(model, None, Packer(4), train)  # type: ignore[arg-type]


def test_measuring_survives_a_gradient_that_is_no_number(measured: Any) -> None:
    model = routed("malora")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    handle = model.get_parameter(next(n for n in before if "malora_up" in n)).register_hook(lambda g: g * torch.inf)
    measured(model)
    handle.remove()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None


def test_measuring_says_in_which_micro_batches_it_fitted(measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "token_nats", limited(token_nats, 24))
    assert measured(routed("malora")).packer == Packer(2)


def test_two_processes_halve_together_and_a_spread_head_runs_in_chunks(tmp_path: Path) -> None:
    """Memory does not suffice in one of them, whose routers would exchange their loads with the other's."""
    torch.multiprocessing.start_processes(memory_processes.run, (str(tmp_path),), nprocs=2, start_method="fork")
    model = routed("malora")
    nats_K = token_nats(model, collate(memory_processes.rows()))
    nats_K.sum().backward()
    norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["packer"] == [1, None]
        assert sorted(found["chunks"][1:]) == [2, 2, *[5] * 8]  # in the backward pass again
        assert found["nats"] == pytest.approx(nats_K.tolist(), abs=1e-4)
        assert found["norms"] == pytest.approx(norms, rel=1e-3)


class Ring:
    """What refers to itself, as a model does by way of its hooks."""

    def __init__(self) -> None:
        self.own = self


def test_the_peak_of_a_gpu_is_what_pytorch_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    left = weakref.ref(Ring())
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: asked.append((str(device), left())))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 if str(device) == "cuda:1" else 7)
    for device, peak in (("cpu", None), ("cuda:1", 5)):
        forget_peak(torch.device(device))
        assert peak_bytes(torch.device(device)) == peak
    assert asked == [("cuda:1", None)], "nothing is counted that nobody holds"


def test_a_model_that_nobody_holds_makes_room_for_that_of_the_next_run(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = Planner(workplace(tmp_path, tiny_model), ["train.steps=1", "eval.rows=1"], {}, vocabulary())
    there: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        there.append(sum(isinstance(it, LlamaForCausalLM) for it in gc.get_objects()))
        return load_base(*arguments, **options)

    for module in (materials, subject):
        monkeypatch.setattr(module, "load_base", counted)
    gc.collect()
    before = sum(isinstance(it, LlamaForCausalLM) for it in gc.get_objects())
    gc.disable()
    try:
        Crew(SilentView, lambda _: None).carry_out(planner.runs(["lora", "malora"], [0]))
    finally:
        gc.enable()
    assert there == [before] * len(there)
    assert len(there) == 4
