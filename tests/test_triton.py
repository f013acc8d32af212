"""Triton's kernels give what PyTorch's operations do: interpreted on a CPU, and on the GPU where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from malora_cli.adapters import entrywise
from malora_cli.adapters.entrywise import plain, steps_for
from malora_cli.adapters.entrywise.trial import Sizes, differing

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def _said(what: str, **environment: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("triton_steps.py")), what]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    return _said("interpret", TRITON_INTERPRET="1")


@needs_triton
def test_every_step_gives_what_pytorch_does(interpreted: dict[str, Any]) -> None:
    assert len(interpreted["steps"]) == 15
    assert {sizes: wrong for sizes, wrong in interpreted["steps"].items() if wrong} == {}


@needs_triton
def test_steps_that_are_wrong_are_found(interpreted: dict[str, Any]) -> None:
    assert len(interpreted["broken"]) == 5
    assert {fault for fault, found in interpreted["broken"].items() if not found} == set()
    assert interpreted["broken"]["gates a thousandth too large"] == ["gates", "gates"]


@needs_triton
def test_autograd_is_told_of_what_is_written_in_place(interpreted: dict[str, Any]) -> None:
    assert interpreted["versions"] == [1, 1, 1]


@needs_triton
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_logit_that_is_no_number_is_not_hidden(value: str, interpreted: dict[str, Any]) -> None:
    """Otherwise a loss would stay finite though its model is spoilt."""
    assert interpreted["spoilt"][value] == [False, True, False]


@needs_triton
def test_a_model_trains_as_by_pytorchs_operations(interpreted: dict[str, Any]) -> None:
    assert len(interpreted["models"]) == 8
    for case, distances in interpreted["models"].items():
        assert {"output", "input", "load", "balance"} < distances.keys()
        assert sum("malora_" in name for name in distances) >= 5, case
        assert distances["load"] == distances["tokens"] == 0.0, case
        assert distances["balance"] < 1e-3, case
        assert all(distance < 0.03 for distance in distances.values()), (case, distances)


@needs_triton
def test_every_kernel_compiles_for_gpus_that_are_not_here() -> None:
    compiled = _said("compile")["compiled"]
    assert len(compiled) == 12
    assert all(compiled.values())


@needs_gpu
@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_on_the_gpu_that_is_here(dtype: torch.dtype) -> None:
    from malora_cli.adapters.entrywise import by_triton

    device = torch.device("cuda")
    assert differing(by_triton, plain, Sizes(tokens=5000, experts=8, dtype=dtype), device) == []
    assert steps_for(torch.empty(1, device=device)) is by_triton


def test_a_processor_takes_pytorchs_operations() -> None:
    assert steps_for(torch.empty(1)) is plain


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """What a tensor on a GPU is for `steps_for`; the GPU computes as a processor does."""
    monkeypatch.setattr(torch.version, "hip", None)
    entrywise._on_gpu.cache_clear()
    yield SimpleNamespace(is_cuda=True, device=torch.device("cpu"), dtype=torch.bfloat16)
    entrywise._on_gpu.cache_clear()


def _as_triton(monkeypatch: pytest.MonkeyPatch, **steps: Any) -> SimpleNamespace:
    """PyTorch's operations in the place of Triton's kernels, but for some of them."""
    module = SimpleNamespace(**{**vars(plain), **steps})
    monkeypatch.setitem(sys.modules, "malora_cli.adapters.entrywise.by_triton", module)
    monkeypatch.setattr(entrywise, "by_triton", module, raising=False)
    monkeypatch.setattr(entrywise, "find_spec", lambda _: True)
    return module


def test_kernels_that_compute_the_same_are_taken_and_asked_once(a_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def choose(*args: Any, **how: Any) -> Any:
        asked.append(1)
        return plain.choose(*args, **how)

    module = _as_triton(monkeypatch, choose=choose)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert steps_for(a_gpu) is module
        assert steps_for(a_gpu) is module
    assert asked == [1] * len(entrywise.TRIED)
    assert steps_for(SimpleNamespace(**{**vars(a_gpu), "dtype": torch.float32})) is plain  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_defaults_of_a_program_change_nothing(dtype: torch.dtype, device: str) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            assert differing(plain, plain, Sizes(), torch.device("cpu")) == []
    finally:
        torch.set_default_dtype(before)


def test_random_numbers_go_on_as_if_nothing_had_been_asked(a_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _as_triton(monkeypatch)
    before = torch.get_rng_state()
    steps_for(a_gpu)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("outcome", "why"),
    [(RuntimeError("Failed to find C compiler.\nSee ..."), "RuntimeError: Failed to find C compiler"), (None, "gates")],
    ids=["cannot be compiled", "wrong"],
)
def test_kernels_that_do_not_work_are_left_and_it_is_said(
    outcome: Exception | None, why: str, a_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(*args: Any, **how: Any) -> Any:
        if outcome is not None:
            raise outcome
        logits_TE, gate_TE = plain.choose(*args, **how)
        return logits_TE, gate_TE * 1.1

    _as_triton(monkeypatch, choose=choose)
    with pytest.warns(UserWarning, match=why) as said:
        assert steps_for(a_gpu) is plain
    assert "\n" not in str(said[0].message)


def test_without_triton_and_by_the_switch_nothing_is_said(a_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _as_triton(monkeypatch, choose=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setenv(entrywise.SWITCH, "0")
        assert steps_for(a_gpu) is plain
        monkeypatch.delenv(entrywise.SWITCH)
        entrywise._on_gpu.cache_clear()
        monkeypatch.setattr(entrywise, "find_spec", lambda _: None)
        assert steps_for(a_gpu) is plain
