"""Training that can be trusted: what stops it, what it survives, and what it never writes."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from forked import forked, started
from malora_cli.data.batch import Packer
from malora_cli.errors import RunError, StoppedError
from malora_cli.results import RunRecord
from malora_cli.train import checkpoints
from malora_cli.train import trainer as trainer_module
from malora_cli.train.run import train
from train_runs import SilentView, adapter, load, losses, measured, same_weights, train_run, workplace


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("trust"), tiny_model)


@pytest.fixture(scope="module")
def whole(recipe: Path) -> RunRecord:
    return train_run(recipe, "output.name=whole")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return "output.name=" + "".join(c if c.isalnum() else "-" for c in request.node.name)


def record_of(recipe: Path, override: str) -> RunRecord:
    return RunRecord(recipe.parent / "runs" / override.partition("=")[2])


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_the_step_and_the_run_goes_on(
    number: signal.Signals, code: int, recipe: Path, whole: RunRecord, name: str
) -> None:
    def send(step: int) -> None:
        if step == 3:
            signal.raise_signal(number)

    before = signal.signal(number, signal.SIG_DFL)  # under nohup or in the background it may be ignored
    with pytest.raises(StoppedError, match=r"saved at step 3; go on .* with: malora train \S+ --resume") as caught:
        train_run(recipe, name, at_step=send)
    assert caught.value.exit_code == code
    assert signal.signal(number, before) is signal.SIG_DFL
    record = record_of(recipe, name)
    assert checkpoints.step_of(checkpoints.checkpoints(record.checkpoints_dir)[-1]) == 3  # no multiple of 2
    resumed = train_run(recipe, name, resume=True)
    assert same_weights(whole, resumed)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_second_signal_leaves_at_once(
    number: signal.Signals, raised: type[BaseException], recipe: Path, name: str
) -> None:
    def send(step: int) -> None:
        if step == 3:
            signal.raise_signal(number)
            signal.raise_signal(number)  # at the same moment: the launcher's echo, not another wish
            time.sleep(0.6)
            signal.raise_signal(number)

    with pytest.raises(raised):
        train_run(recipe, name, at_step=send)
    saved = checkpoints.checkpoints(record_of(recipe, name).checkpoints_dir)
    assert [checkpoints.step_of(path) for path in saved] == [2]


def test_a_signal_in_the_last_step_ends_nothing(recipe: Path, name: str, whole: RunRecord) -> None:
    record = train_run(recipe, name, at_step=lambda step: signal.raise_signal(signal.SIGTERM) if step == 6 else None)
    assert record.finished
    assert same_weights(whole, record)


# ---------------------------------------------------------------- a kill at any moment


@pytest.mark.parametrize("after", [0, 3])
def test_a_kill_at_any_moment_loses_nothing(
    after: int, recipe: Path, whole: RunRecord, name: str, tmp_path: Path
) -> None:
    """The benchmark does this thirty times; where it is after so many steps are logged is chance."""
    record = record_of(recipe, name)
    process = started(lambda: train_run(recipe, name), tmp_path / "said")
    while not record.exists or len(record.metrics.train()) < after:
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    resumed = record if record.finished else train_run(recipe, name, resume=record.exists)
    assert same_weights(whole, resumed)
    assert measured(whole) == measured(resumed)


# ---------------------------------------------------------------- checkpoints


def _stopped_at(recipe: Path, step: int, *overrides: str) -> None:
    with pytest.raises(StoppedError):
        train_run(
            recipe,
            *overrides,
            at_step=lambda done: signal.raise_signal(signal.SIGINT) if done == step else None,
        )


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [_cut, _flip, Path.unlink])
@pytest.mark.parametrize(
    "file", ["adapter_model.safetensors", "training_state.safetensors", "training_state.json", "checkpoint.json"]
)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(
    harm: Callable[[Path], None], file: str, recipe: Path, whole: RunRecord, name: str
) -> None:
    _stopped_at(recipe, 5, name)
    newest = checkpoints.checkpoints(record_of(recipe, name).checkpoints_dir)[-1]
    harm(newest / file)
    with pytest.warns(UserWarning, match=rf"checkpoint \S+{newest.name} is damaged .* an earlier one is taken"):
        resumed = train_run(recipe, name, resume=True)
    assert same_weights(whole, resumed)


def test_where_every_checkpoint_is_damaged_the_run_begins_anew(recipe: Path, whole: RunRecord, name: str) -> None:
    _stopped_at(recipe, 5, name)
    for path in checkpoints.checkpoints(record_of(recipe, name).checkpoints_dir):
        _cut(path / "adapter_model.safetensors")
    with pytest.warns(UserWarning, match="is damaged") as caught:
        resumed = train_run(recipe, name, resume=True)
    assert len([one for one in caught if "is damaged" in str(one.message)]) == 2
    assert same_weights(whole, resumed)


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(
    recipe: Path, whole: RunRecord, name: str, tmp_path: Path
) -> None:
    """Files cannot grow beyond a limit from step 3 on, so the checkpoint of step 4 does not fit."""

    def fill(step: int) -> None:
        if step == 3:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, -1))

    ended = forked(lambda: train_run(recipe, name, at_step=fill), tmp_path)
    assert ended.code == 1
    line = ended.out.splitlines()[-1]
    assert line.startswith("malora_cli.errors.RunError: ")
    record = record_of(recipe, name)
    assert "cannot be read or written (File too large). The checkpoint of step 2 is whole. Free some space" in line
    assert line.endswith(f"and go on with: malora train {record.recipe_path} --resume")
    folder = record_of(recipe, name).checkpoints_dir
    assert [path.name for path in folder.iterdir()] == ["step-0000002"]
    assert same_weights(whole, train_run(recipe, name, resume=True))


# ---------------------------------------------------------------- what is no number


def _poison(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], bool]) -> None:
    """Make the loss of some batches not a number, as an overflow would."""
    plain = trainer_module.token_nats

    def poisoned(model: Any, batch: Any) -> torch.Tensor:
        nats = plain(model, batch)
        return nats * torch.nan if spoil(batch) else nats

    monkeypatch.setattr(trainer_module, "token_nats", poisoned)
    monkeypatch.setattr("malora_cli.modeling.loss.token_nats", poisoned)


def _holds_row_of(recipe: Path, text: str) -> Callable[[Any], bool]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(load(recipe).recipe.model.base)
    return lambda batch: text in tokenizer.decode(batch["input_ids"][0])


def test_a_loss_that_is_no_number_names_the_row(recipe: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, _holds_row_of(recipe, "copy bal"))
    with pytest.raises(RunError) as caught:
        train_run(recipe, name, "train.steps=20")
    message = str(caught.value)
    assert "the loss is not a finite number (row 1 of task 'copy'; all rows of the step: " in message
    [path] = (record_of(recipe, name).path / "trouble").iterdir()
    written = json.loads(path.read_text())
    assert len(written["rows"]) == 6
    assert [row["row"] for row in written["rows"] if row["nats"] is None] == [1]
    assert {row["source"] for row in written["rows"] if row["task"] == "copy"} == {
        str(recipe.parent / "copy.train.jsonl")
    }
    for event in record_of(recipe, name).metrics.train():
        assert all(task.nats == task.nats for task in event.tasks.values())


def test_such_steps_can_be_skipped_up_to_a_bound(recipe: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, lambda batch: True)
    monkeypatch.setattr(trainer_module.MaloraTrainer, "evaluate", lambda self, *_, **__: {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(RunError, match=r"^step 3: the loss is not a finite number"):
            train_run(recipe, name, "train.not_finite=skip", "train.max_skipped=2")
    skipped = [str(one.message) for one in caught if "this step is skipped" in str(one.message)]
    assert [text.partition(":")[0] for text in skipped] == ["step 1", "step 2"]


def test_a_skipped_step_changes_no_weight(recipe: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, lambda batch: bool(torch.is_grad_enabled()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = train_run(recipe, name, "train.not_finite=skip", "train.max_skipped=9")
    monkeypatch.undo()
    untrained = train_run(recipe, f"{name}-untrained", "train.learning_rate=1e-30", "train.weight_decay=0")
    one, two = adapter(record), adapter(untrained)
    assert all(torch.allclose(one[key], two[key]) for key in one)
    assert all(event.tasks == {} for event in record.metrics.train())


def test_a_gradient_that_is_no_number_is_caught(recipe: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trainer_module.token_nats

    def steep(model: Any, batch: Any) -> torch.Tensor:
        nats = plain(model, batch)
        if nats.requires_grad:
            nats.register_hook(lambda gradient: gradient * torch.inf)
        return nats

    monkeypatch.setattr(trainer_module, "token_nats", steep)
    with pytest.raises(RunError, match=r"^step 1: the gradient is not a finite number"):
        train_run(recipe, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RunError, match=r"^step 4: the gradient is not a finite number"):
            train_run(recipe, f"{name}-skipped", "train.not_finite=skip", "train.max_skipped=3")


def test_weights_that_are_no_numbers_are_never_saved(recipe: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(self: Any, step: int) -> None:
        if step == 2:
            next(p for p in trained.model.parameters() if p.requires_grad).data.fill_(torch.nan)

    start = trainer_module.MaloraTrainer.__init__

    def remember(self: Any, *arguments: Any, **options: Any) -> None:
        nonlocal trained
        trained = self
        start(self, *arguments, **options)

    trained: Any = None
    monkeypatch.setattr(trainer_module.MaloraTrainer, "__init__", remember)
    with pytest.raises(RunError, match=r"^step 2: the weights are NaN or infinite \(base_model"):
        train_run(recipe, name, at_step=lambda step: spoil(None, step))
    assert checkpoints.checkpoints(record_of(recipe, name).checkpoints_dir) == []


# ---------------------------------------------------------------- memory


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Memory for two rows at once and no more; holds what was tried."""
    tried: list[int] = []
    plain = trainer_module.token_nats

    def limited(model: Any, batch: Any) -> torch.Tensor:
        rows = int((batch["position_ids"] == 0).sum())
        if torch.is_grad_enabled():
            tried.append(rows)
            if rows > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(model, batch)

    monkeypatch.setattr(trainer_module, "token_nats", limited)
    return tried


def test_where_memory_does_not_suffice_micro_batches_halve(
    recipe: Path, name: str, crowded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    same = ["method.lora_dropout=0", "train.learning_rate=1e-4", "train.micro_batch_size=6"]
    with pytest.warns(UserWarning, match="step 1 does not fit into memory") as caught:
        record = train_run(recipe, name, *same)
    assert [str(one.message) for one in caught if "micro-batches are of at most" in str(one.message)][-1].endswith(
        "at most 1 row, and the optimiser sees the same rows as before; routers balance over one micro-batch at a "
        "time, and so over fewer rows"
    )
    assert crowded[:2] == [6, 3]
    assert set(crowded[2:]) == {1}  # kept to from then on
    monkeypatch.undo()
    plain = train_run(recipe, f"{name}-plain", *same)
    for one, other in zip(losses(record), losses(plain), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_resumed_run_keeps_to_the_smaller_micro_batches(recipe: Path, name: str, crowded: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _stopped_at(recipe, 3, name)
        crowded.clear()
        train_run(recipe, name, resume=True)
    assert set(crowded) == {1}


def test_measuring_the_longest_step_does_not_end_what_training_would_survive(
    recipe: Path, name: str, crowded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("malora_cli.train.probe.token_nats", trainer_module.token_nats)
    told: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load(recipe, name, "train.micro_batch_size=6")
        record = train(loaded, SilentView(), announce=lambda _materials, cost: told.append(cost.tokens))
    assert record.finished
    assert len(told) == 1
    assert crowded.count(6) == 1  # training begins with what measuring has found to fit


def test_one_row_that_does_not_fit_is_one_line(recipe: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: Any, batch: Any) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    monkeypatch.setattr(trainer_module, "token_nats", full)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RunError, match=r"^step 1: a micro-batch of one row does not fit into memory"):
            train_run(recipe, name)


def test_other_errors_are_not_taken_for_it(recipe: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any, batch: Any) -> torch.Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(trainer_module, "token_nats", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        train_run(recipe, name)


def test_the_weight_of_a_tasks_loss_weighs_its_gradient(recipe: Path, name: str) -> None:
    """All weights doubled under plain steps of a clipped gradient change nothing; one of them does."""
    plain = train_run(recipe, f"{name}-plain", "train.steps=2")
    same = [f"mix.tasks.{task}.loss_weight=1.0" for task in ("copy", "upper", "add")]
    assert same_weights(plain, train_run(recipe, f"{name}-same", "train.steps=2", *same))
    heavy = train_run(recipe, f"{name}-heavy", "train.steps=2", "mix.tasks.add.loss_weight=5")
    assert not same_weights(plain, heavy)
    first, weighted = plain.metrics.train()[0], heavy.metrics.train()[0]
    assert weighted.tasks == first.tasks  # what is reported is the loss itself
    assert weighted.grad_norm != first.grad_norm


def test_seeds_are_apart(recipe: Path, name: str) -> None:
    number = itertools.count()

    def run(*settings: str) -> RunRecord:
        few = ["train.steps=2", "train.eval_rows=1"]
        return train_run(recipe, f"{name}-{next(number)}", *few, *settings)

    plain, dropped, begun = run(), run("train.dropout_seed=1"), run("train.init_seed=1")
    rows = [event.tasks["add"].tokens for event in plain.metrics.train()]
    for other in (dropped, begun):  # the same rows in the same order
        assert [event.tasks["add"].tokens for event in other.metrics.train()] == rows
        assert not same_weights(plain, other)
    assert plain.metrics.evals()[0].tasks == dropped.metrics.evals()[0].tasks
    assert same_weights(run("train.dropout_seed=1"), dropped)
    assert begun.manifest.seeds == {"train": 0, "init": 1, "dropout": 0}
    # With both seeds given, that of the data order is of nothing else.
    fixed = ["train.init_seed=3", "train.dropout_seed=4", "train.learning_rate=1e-30", "train.weight_decay=0"]
    one, two = adapter(run("train.seed=0", *fixed)), adapter(run("train.seed=9", *fixed))
    assert all(torch.allclose(one[key], two[key]) for key in one)


def test_the_best_checkpoints_stay_as_well(recipe: Path, name: str) -> None:
    settings = ["train.steps=12", "train.eval_every=2", "train.checkpoint_every=1", "train.keep_checkpoints=1"]
    record = train_run(recipe, name, *settings, "train.keep_best=2", "train.learning_rate=0.1")
    losses_at = {event.step: sum(task.loss or 0.0 for task in event.tasks.values()) for event in record.metrics.evals()}
    earlier = sorted((step for step in losses_at if 0 < step < 12), key=lambda step: losses_at[step])[:2]
    kept = [checkpoints.step_of(path) for path in checkpoints.checkpoints(record.checkpoints_dir)]
    assert kept == sorted({*earlier, 12})


def test_half_a_packer() -> None:
    assert Packer(6, 100).half == Packer(3, 50)
    assert Packer(3).half == Packer(1)
    assert Packer(1, 100).half is None
