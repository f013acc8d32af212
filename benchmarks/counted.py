"""What an adapted linear asks of a GPU in training, counted and not timed: it needs none.

    python benchmarks/counted.py

A linear of 4,096 inputs and outputs, as in LLaMA-2 7B, frozen in bfloat16 under autocast, forward and backward: what a
model of three takes more than one of two, so what serves all linears of a model at once is not counted (and `mixlora`
has no router here: it is the first linear's of a block). Every operation of PyTorch that would be a kernel is counted,
views and metadata left out, and so are the bytes of a token in the tensors that it reads and writes. Weights, which all
tokens share, are not. ``kept`` are the bytes of a token that wait for the backward pass, each storage once; the input
itself is among them, which q, k and v share. A CPU goes through the operations of an NVIDIA GPU but for three, which
take the GPU's way here: PyTorch's dropout is one kernel, the kernel of the family draws its mask by the device's
generator, and a product of half precision has its result in float32. Figures are printed and kept in
``benchmarks/results/counted.json``.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import PeftConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from malora_cli.adapters import fused, logits
from malora_cli.adapters.dropout import kept_by_device
from malora_cli.adapters.methods import METHODS
from malora_cli.adapters.routing import routing_of
from malora_cli.results import write_json

RESULTS = Path(__file__).parent / "results" / "counted.json"
WIDTH, TOKENS = 4096, 509  # a prime number, by which tensors of tokens are known
_KIB = 1024
NAMES = "abc"  # of linears; not numbers, by which `mola` tells layers
#: Operations that only look at a tensor in another way, beside those whose schema says so.
_FREE = (
    "detach",
    "alias",
    "_unsafe_view",
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "new_empty_strided",
    "lift_fresh",
    "_local",
)


@dataclass(frozen=True)
class Count:
    """What a step takes, forward and backward; bytes are KiB a token."""

    kernels: tuple[int, int]
    moved_kib: tuple[float, float]
    kept_kib: float

    def more_than(self, other: Count) -> Count:
        """What it takes more than another."""
        (forward, backward), (before, behind) = self.kernels, other.kernels
        (read, written), (first, second) = self.moved_kib, other.moved_kib
        return Count(
            (forward - before, backward - behind),
            (read - first, written - second),
            self.kept_kib - other.kept_kib,
        )


class Counting(TorchDispatchMode):
    """Counts the kernels within its block, and the bytes of tokens that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = _mm_into_float32(*args) if func is torch.ops.aten.mm.dtype else func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket.__name__ not in _FREE:
            self.kernels += 1
            read = () if func is torch.ops.aten.bernoulli_.float else (args, kwargs)  # it only writes
            tensors = [leaf for leaf in tree_leaves((read, found)) if isinstance(leaf, Tensor)]
            self.bytes += sum(_bytes(tensor) for tensor in tensors)
        return found

    @property
    def moved_kib(self) -> float:
        """KiB a token so far."""
        return self.bytes / TOKENS / _KIB


def _mm_into_float32(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """What a CPU lacks."""
    return a.to(dtype) @ b.to(dtype)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """The operations of an NVIDIA GPU within the block."""

    def dropout(x: Tensor, p: float, training: bool, _inplace: bool) -> Tensor:
        return torch.native_dropout(x, p, training)[0]

    with (
        patch.object(fused, "draw_kept", lambda x, p: (kept_by_device(x, p), 1 / (1 - p))),
        patch.object(fused, "multiplies_into_float32", return_value=True),
        patch.object(logits, "multiplies_into_float32", return_value=True),
        patch.object(torch.nn.functional, "dropout", dropout),
    ):
        yield


def _bytes(tensor: Tensor) -> int:
    """Of a tensor that has something for every token."""
    return tensor.numel() * tensor.element_size() if TOKENS in tensor.shape else 0


@contextmanager
def keeping(kept: dict[int, int]) -> Iterator[None]:
    """Note the storages that the block keeps for the backward pass, with their bytes."""

    def pack(tensor: Tensor) -> Tensor:
        if TOKENS in tensor.shape or tensor.numel() % TOKENS == 0:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def configurations(dropout: float) -> dict[str, PeftConfig | None]:
    """What is counted, by name; None is the frozen linear alone."""
    made = {name: method(lora_dropout=dropout).peft_config([*NAMES]) for name, method in METHODS.items()}
    for config in made.values():
        config.task_type = None  # some linears are no language model
    return {"frozen": None, **made}


def counted(config: PeftConfig | None, names: str) -> Count:
    """What a step of some linears takes, one behind the other."""
    torch.manual_seed(0)
    layers = {name: nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.bfloat16) for name in names}
    model = nn.Sequential(OrderedDict(layers)).requires_grad_(False)
    adapted = model if config is None else get_peft_model(model, copy.deepcopy(config))
    adapted.train()
    routing = routing_of(adapted)
    if routing is not None:  # as `malora train` does, whose losses say what the balance loss weighs
        routing.tally = routing.new_tally(adapted)
    x = torch.randn(1, TOKENS, WIDTH).bfloat16().requires_grad_()
    kept: dict[int, int] = {}
    with as_on_a_gpu():
        with torch.autocast("cpu", dtype=torch.bfloat16), keeping(kept), Counting() as forward:
            y = adapted(x)
        gradient = torch.randn_like(y)
        if routing is not None:
            routing.balance_weight = torch.tensor(1.0)
        with Counting() as backward:
            y.backward(gradient)
    return Count(
        (forward.kernels, backward.kernels),
        (forward.moved_kib, backward.moved_kib),
        sum(kept.values()) / TOKENS / _KIB,
    )


def main() -> None:
    """Count, print and keep."""
    table = Table("linear", "dropout", "kernels", "KiB moved a token", "KiB kept a token", box=None, pad_edge=False)
    found: dict[str, Any] = {}
    for dropout in (0.05, 0.0):
        for name, config in configurations(dropout).items():
            one = counted(config, NAMES).more_than(counted(config, NAMES[:-1]))
            found[f"{name}, dropout {dropout:g}"] = asdict(one)
            kernels, moved = (" + ".join(f"{way:.0f}" for way in ways) for ways in (one.kernels, one.moved_kib))
            table.add_row(name, f"{dropout:g}", kernels, moved, f"{one.kept_kib:.1f}")
    Console().print(table)
    write_json(RESULTS, {"width": WIDTH, "tokens": TOKENS, "torch": torch.__version__, "linears": found})


if __name__ == "__main__":
    main()
