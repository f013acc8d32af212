"""What other machines lack: Apple's GPU float64, Windows ``resource`` and a flush of files open for reading."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from malora_cli import processor
from malora_cli.errors import ModelError
from malora_cli.modeling import device, load_base, resolve_base
from malora_cli.modeling.device import exact, own_device
from malora_cli.results import RunRecord, files
from malora_cli.train import checkpoints, conflict, probe
from malora_cli.train.arguments import training_arguments
from malora_cli.train.conflict import _Sketcher
from malora_cli.train.remedies.pcgrad import combine
from malora_cli.train.stopping import StopRequest
from malora_cli.train.task_losses import TaskLosses
from train_runs import load, train_run


class OnApple(Tensor):
    """A tensor that says it is on Apple's GPU and refuses float64 as those do; what is moved to the CPU is plain."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.device.__get__:  # type: ignore[attr-defined]
            return torch.device("mps")
        if func is Tensor.to and torch.device("cpu") in args:
            return args[0].as_subclass(Tensor)
        found = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(found, Tensor) and found.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return found


def on_apple(*values: float) -> Tensor:
    return torch.tensor(values).as_subclass(OnApple)


def test_sums_are_exact_where_the_device_has_no_float64() -> None:
    with pytest.raises(TypeError, match="float64"):
        on_apple(1.0).double()
    assert exact(on_apple(0.5, 2.0)).tolist() == [0.5, 2.0]
    assert device.exact_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    losses = TaskLosses(["a", "b"], torch.device("mps"))
    tasks, examples = (torch.tensor(ids).as_subclass(OnApple) for ids in ([0, 1, 1], [0, 1, 1]))
    losses.add(on_apple(1.0, 2.0, 3.0), tasks, examples)
    found = losses.drain(1)
    assert [(task.nats, task.tokens, task.examples) for task in found.values()] == [(1.0, 1, 1), (5.0, 2, 1)]


def test_gradients_are_compared_and_projected_where_the_device_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conflict, "SLOTS", 2)  # fewer than there are entries, so that signs are drawn as well
    parameter = nn.Parameter(torch.zeros(3))
    parameter_there = SimpleNamespace(numel=parameter.numel, device=torch.device("mps"))
    sketcher = _Sketcher({"x.lora_A.default": parameter_there})  # type: ignore[dict-item]
    sketch = sketcher.empty()
    sketcher.add(sketch, [on_apple(1.0, 0.0, 0.0)])
    assert sketch["lora_A"].abs().tolist() == [1.0, 0.0]
    [projected] = combine([[on_apple(1.0, 0.0)], [on_apple(-1.0, 1.0)]], [0])
    assert projected.tolist() == pytest.approx([0.5, 1.5])  # [1/2, 1/2] and [0, 1]


def test_apples_gpu_is_taken_by_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"model\.device: got mps, and PyTorch finds none here\. Set it to auto\."):
        own_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert [own_device(name).type for name in ("auto", "cpu", "mps")] == ["cpu", "cpu", "mps"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [own_device(name).type for name in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]


def test_a_recipe_says_what_computes(tiny_recipe: Path) -> None:
    with pytest.raises(ModelError, match=r"^model\.device: got mps"):
        train_run(tiny_recipe, "model.device=mps")
    recipe = load(tiny_recipe, "model.device=mps").recipe
    with pytest.raises(ModelError, match=r"^model\.device: got mps"):
        load_base(resolve_base(recipe.model), recipe.model)
    with pytest.raises(ModelError, match=r"^model\.device: got mps"):
        training_arguments(recipe, RunRecord(tiny_recipe.parent), 1, resumed=False)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, probe, checkpoints):
        monkeypatch.setattr(module, "WINDOWS", True)
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.setitem(sys.modules, "resource", None)


def test_windows_flushes_what_it_can_write(windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("a", encoding="utf-8")
    modes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: modes.append(os.get_blocking(file) and os.write(file, b"")))
    files.flush(tmp_path)
    assert modes == [0]  # a file open for reading would not be written to, and a folder is not opened


def test_windows_stops_and_tells_its_memory(windows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.signal == signal.SIGTERM
    memory = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=77))
    monkeypatch.setattr(psutil, "Process", lambda: memory)
    assert probe._peak_bytes(torch.device("cpu")) == 77


def test_on_windows_a_checkpoint_that_is_still_open_stays(
    windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path, _target: Path) -> Path:
        raise PermissionError(13, "it is used by another process")

    for step in (1, 2):
        (tmp_path / f"step-000000{step}").mkdir()
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", refuse)
    checkpoints.prune(tmp_path, newest=1)
    assert len(checkpoints.checkpoints(tmp_path)) == 2
    monkeypatch.setattr(Path, "rename", rename)
    checkpoints.prune(tmp_path, newest=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000002"]


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (
            "cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n",
            "AMD EPYC, family 25 model 17",
        ),
        ("processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n\n", "aarch64"),
        (None, "aarch64"),
    ],
)
def test_a_processor_is_named_with_its_design(
    cpuinfo: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo, encoding="utf-8")
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processor.platform, "processor", lambda: "")
    monkeypatch.setattr(processor.platform, "machine", lambda: "aarch64")
    assert processor.processor() == expected
