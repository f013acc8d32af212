"""Two processes, each with a part of the batch, end with the gradients of one process with the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import data_parallel
from presets import routed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have written the gradients of every case."""
    folder = tmp_path_factory.mktemp("gradients")
    torch.multiprocessing.start_processes(data_parallel.run, (str(folder),), nprocs=2, start_method="fork")
    return folder


@pytest.mark.parametrize(("method", "checkpointing"), data_parallel.CASES)
def test_two_processes_equal_one(method: str, checkpointing: bool, folder: Path) -> None:
    first, second = (load_file(data_parallel.path(folder, rank, method, checkpointing)) for rank in (0, 1))
    alone = data_parallel.gradients(method, slice(None), processes=1)
    assert first.keys() == second.keys() == alone.keys()
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected, atol=2e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_the_balance_loss_is_no_small_part_of_these_gradients() -> None:
    """Or the comparison above would say nothing about it."""
    with_balance = data_parallel.gradients("malora", slice(None), processes=1)
    model, whole = routed("malora", balance_factor=0.0), data_parallel.batch()
    model(**whole).loss.backward()
    without = {n: p.grad for n, p in model.named_parameters() if "malora_router" in n}
    parts = [(with_balance[name] - gradient).norm() / gradient.norm() for name, gradient in without.items()]
    assert max(parts) > 0.05
    assert min(parts) > 1e-3, "more than the comparison lets pass"
