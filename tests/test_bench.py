"""What `malora bench` measures, and that the peer it measures against computes the same thing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from malora_cli.adapters.config import MoloraConfig
from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.methods import METHODS
from malora_cli.adapters.routing import Routing
from malora_cli.bench.loop import LoopMoloraLinear, wrap_in_loops
from malora_cli.bench.measure import Stepper, in_turns
from malora_cli.bench.rows import base_of, build
from malora_cli.bench.run import run_decode, run_steps
from malora_cli.bench.workload import Workload, check_rows
from malora_cli.cli import main
from malora_cli.errors import MaloraError
from malora_cli.processor import processor
from tiny_models import tiny


@pytest.fixture(scope="module")
def workload(tiny_model: Path) -> Workload:
    return Workload(model=str(tiny_model), tokens=16)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments])
    return int(caught.value.code or 0)


def test_the_loop_computes_what_the_dense_kernel_does() -> None:
    torch.manual_seed(0)
    base = nn.Linear(10, 7).requires_grad_(False)
    config = MoloraConfig(num_experts=4, r=3, lora_alpha=6, balance_factor=0.0)
    ours = MixtureLinear(base, "default", config=config, routing=Routing(), name="layers.0.linear")
    loop = LoopMoloraLinear(base, num_experts=4, top_k=2, r=3, lora_alpha=6, dropout=0.0)
    down, up, router = (getattr(ours, f"malora_{part}")["default"] for part in ("down", "up", "router"))
    with torch.no_grad():
        up.normal_()
        loop.router.weight.copy_(router)
        for expert, (a, b) in enumerate(zip(loop.down, loop.up, strict=True)):
            a.weight.copy_(down[3 * expert : 3 * expert + 3])
            b.weight.copy_(up[:, 3 * expert : 3 * expert + 3])
    x = torch.randn(2, 9, 10)
    torch.testing.assert_close(loop(x), ours(x))
    (loop(x) ** 2).sum().backward()
    (ours(x) ** 2).sum().backward()
    torch.testing.assert_close(loop.router.weight.grad, router.grad)
    torch.testing.assert_close(torch.cat([a.weight.grad for a in loop.down]), down.grad, atol=1e-4, rtol=1e-4)


def test_loops_go_on_the_linears_named_and_nothing_else_trains() -> None:
    model = tiny("llama")
    wrap_in_loops(model, ["q_proj", "mlp.up_proj"], dropout=0.1)
    looped = {name for name, module in model.named_modules() if isinstance(module, LoopMoloraLinear)}
    assert looped == {f"model.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj")}
    trained = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    experts = {f"{part}.{expert}" for part in ("down", "up") for expert in range(8)} | {"router"}
    assert trained == {f"{name}.{part}" for name in looped for part in experts}


def test_all_rows_share_the_frozen_weights(workload: Workload) -> None:
    base = base_of(workload)
    pointers = {weight.data_ptr() for weight in base.parameters()}
    for name in check_rows([]):
        frozen = [
            p for n, p in build(name, base, workload).named_parameters() if "lora" not in n and not p.requires_grad
        ]
        assert {p.data_ptr() for p in frozen} <= pointers, name


def test_rows_are_the_peers_and_every_method() -> None:
    assert check_rows([]) == ["frozen", "peft-lora", "peft-dora", "loop-molora", *METHODS]
    assert check_rows(["malora", "frozen"]) == ["frozen", "peft-lora", "malora"]
    with pytest.raises(MaloraError, match="unknown method 'malroa'; did you mean 'malora'"):
        check_rows(["malroa"])


def test_steps_are_timed_in_turns_against_the_peer(workload: Workload) -> None:
    costs = {cost.name: cost for cost in run_steps(["malora", "loop-molora", "frozen"], workload, rounds=2)}
    assert list(costs) == ["frozen", "peft-lora", "loop-molora", "malora"]
    assert costs["peft-lora"].ratio == 1.0
    assert costs["peft-lora"].spread == (1.0, 1.0)
    assert costs["frozen"].trainable == 0
    for cost in costs.values():
        parts = cost.forward_seconds + cost.backward_seconds + cost.optimiser_seconds
        assert 0 < cost.step_seconds <= 3 * parts
        assert cost.spread[0] <= cost.ratio <= cost.spread[1]
    # The weight and the two moments of each trained parameter are held throughout, and most gradients at the peak.
    grown = costs["malora"].peak_bytes - costs["frozen"].peak_bytes
    assert grown > 3 * 4 * costs["malora"].trainable


def test_a_timed_step_is_a_training_step(workload: Workload) -> None:
    model = build("malora", base_of(workload), workload)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert all(seconds > 0 for seconds in Stepper(model, workload)())
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("malora_" in name for name in changed)


def test_the_first_round_only_warms_up() -> None:
    numbers = iter(range(100))
    seen: list[str] = []
    found = in_turns({"a": lambda: next(numbers), "b": lambda: next(numbers)}, 2, seen.append)
    assert found == {"a": [2, 4], "b": [3, 5]}
    assert seen == ["warming up", "round 1 of 2", "round 2 of 2"]


def test_decoding_is_timed_at_two_batch_sizes(workload: Workload) -> None:
    costs = run_decode(["malora"], workload, rounds=1)
    assert [(cost.name, cost.batch) for cost in costs] == [
        ("peft-lora", 1),
        ("malora", 1),
        ("peft-lora", 16),
        ("malora", 16),
    ]
    assert all(cost.tokens_per_second > 0 for cost in costs)


def test_the_command_prints_a_table_and_keeps_the_figures(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--model", str(tiny_model), "--methods", "malora", "--tokens", "8", "--rounds", "1"]
    assert run(*arguments, "--dropout", "0", "--json", str(file)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "method"
    assert [line.split()[0] for line in lines[1:3]] == ["peft-lora", "malora"]
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert figures["workload"]["tokens"] == 8
    assert figures["workload"]["dropout"] == 0
    assert [row["name"] for row in figures["rows"]] == ["peft-lora", "malora"]
    assert figures["machine"]["torch"] == torch.__version__
    assert figures["machine"]["processor"] == processor()
    assert run(*arguments, "--decode") == 0
    assert "tokens/s" in capsys.readouterr().out


def test_a_shape_needs_no_weights_from_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--shape", "smollm2-135m", "--methods", "malora", "--tokens", "8", "--rounds", "1") == 0
    assert "malora" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "malroa"], "did you mean 'malora'?"),
        (["--shape", "lama2-7b"], "did you mean 'llama2-7b'?"),
        (["--model", "./nowhere"], "model './nowhere'"),
        (["--dtype", "float64"], "float64"),
        (["--json", "missing/folder/x.json", "--shape", "smollm2-135m", "--methods", "malora", "--rounds", "1"], ""),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "--json":
        (tmp_path / "missing").write_text("")
        arguments, message = [*arguments, "--tokens", "8"], "the figures cannot be written"
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--device", "cuda") == 2
    assert "no CUDA GPU found" in capsys.readouterr().err
