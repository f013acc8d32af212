"""Memory that does not suffice: the words in which that is said, and going on in parts of half the size."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache

from malora_cli.errors import RunError

T = TypeVar("T")
#: Of messages: PyTorch's own on a CPU (Linux, Windows), CUDA's, ROCm's and NCCL's, and those of CUDA's libraries.
_SAID_BY = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")


class Halvable(Protocol):
    """What says how much goes through a model at once, as `data.batch.Packer` does."""

    @property
    def half(self) -> Self | None:
        """Half as much; None where that is nothing."""


H = TypeVar("H", bound=Halvable)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice.

    Only PyTorch's own allocator has a class for that. cuBLAS and cuDNN, which allocate what they need themselves, and
    CUDA's runtime (``torch.AcceleratorError``) have messages, as has the CPU.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID_BY)


def make_room() -> None:
    """Let go of a model that nobody holds any more: its parts refer to each other, so that Python may keep it long."""
    clear_device_cache(garbage_collection=True)


def forget_peak(device: torch.device) -> None:
    """Let `peak_bytes` speak of what comes from here on, and of nothing that nobody holds any more."""
    if device.type == "cuda":
        make_room()
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """Most memory that was in use on a GPU since `forget_peak`; None on other devices, which do not count it."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


class Attempt:
    """A block of work for which memory may not suffice: where it does not, the block ends and nothing is raised.

    The error holds the frames it went through, and these hold their tensors. Both are gone once the block is left, so
    that is where to make room, and not in an ``except``.
    """

    out_of_memory = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self.out_of_memory = error is not None and out_of_memory(error)
        return self.out_of_memory


def halved(size: H, where: str, *, fix: str) -> H:
    """Half as much at once, with the memory given back that the attempt before has left reserved.

    Args:
        size: What did not fit.
        where: What was attempted.
        fix: What to do where even one row does not fit.

    Raises:
        RunError: It was one row.
    """
    make_room()
    half = size.half
    if half is None:
        raise RunError("a micro-batch of one row does not fit into memory", where=where, fix=fix)
    return half


def fitting(work: Callable[[H], T], size: H, where: str, *, fix: str) -> tuple[T, H]:
    """What some work comes to, and how much of it at once fitted into memory: ``size``, halved as often as needed.

    Args:
        work: Begins anew each time.
        size: As much as it is to take at once.
        where: As in `halved`.
        fix: As in `halved`.

    Raises:
        RunError: Memory does not suffice for one row.
    """
    while True:
        with Attempt():
            return work(size), size
        size = halved(size, where, fix=fix)
