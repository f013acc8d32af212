"""Several processes on one batch: what they agree on, and which of them writes.

Launching them is torchrun's and accelerate's business; by itself a process finds nobody to ask and agrees with itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from malora_cli.errors import RunError
from malora_cli.modeling.device import own_device
from malora_cli.modeling.reason import first_line
from malora_cli.train.ranks import LAUNCH, processes_here, rank, too_few_gpus, world_size, writes

__all__ = [
    "add_up",
    "by_the_writer",
    "everyones",
    "meet",
    "most",
    "one_first",
    "part",
    "rank",
    "the_writers",
    "world_size",
    "writes",
]

T = TypeVar("T")
#: How long processes wait for one of them, which may fetch models and data sets and encode them first; by itself NCCL
#: gives up after ten minutes. One that has died keeps nobody waiting: the launcher ends the others.
_PATIENCE = timedelta(hours=12)


def meet(device: str = "auto") -> None:
    """Find the other processes, where a launcher has started several.

    Args:
        device: The recipe's ``model.device``.

    Raises:
        ModelError: The device is not there.
        RunError: The environment speaks of processes that are not there, or numbers this one as none of them.
    """
    computes = own_device(device)
    if rank() >= world_size():
        raise RunError(f"got {rank()}, and WORLD_SIZE speaks of {world_size()}", where="RANK", fix=LAUNCH)
    if world_size() == 1:
        return
    # Where a process sees one GPU, a launcher may show each of them another.
    here = processes_here()
    if computes.type == "cuda" and 1 < (there := torch.cuda.device_count()) < here:
        raise too_few_gpus(here, there, "LOCAL_WORLD_SIZE")
    try:
        PartialState(cpu=computes.type == "cpu", timeout=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        what = f"the processes do not find each other ({first_line(error)})"
        raise RunError(what, where="WORLD_SIZE", fix=LAUNCH) from error
    if not dist.is_initialized():
        raise RunError(f"got {world_size()}, and no launcher has started them", where="WORLD_SIZE", fix=LAUNCH)


def part() -> None:
    """Leave together, when the writing process has written everything: the others end here.

    They end without taking their interpreter down, in which threads of PyTorch's have been seen to abort the process;
    the launcher would take that for a failure of the run.
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        if not writes():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


@contextmanager
def one_first() -> Iterator[None]:
    """The writing process goes through the block first, the others when it is done: they find what it has cached."""
    together = dist.is_available() and dist.is_initialized()
    if together and not writes():
        dist.barrier()
    yield
    if together and writes():
        dist.barrier()


def add_up(sums: Tensor) -> Tensor:
    """The sum over all processes, in the place of this one's."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    return sums


def most(number: float, device: torch.device) -> float:
    """The largest of all processes' numbers; for truth values, whether any holds."""
    if not (dist.is_available() and dist.is_initialized()):
        return number
    largest = torch.tensor(float(number), dtype=torch.float64, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.item()


def everyones(thing: T) -> list[T]:
    """What each process has, by rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return [thing]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, thing)
    return found


def by_the_writer(make: Callable[[], T]) -> T:
    """What the writing process makes, which is the only one that does; where it fails, the launcher ends the others."""
    return cast(T, the_writers(make() if writes() else None))


def the_writers(thing: T) -> T:
    """What the writing process has."""
    return everyones(thing)[0]
