"""What an adapted linear asks of a GPU in training, counted and not timed: it needs none.

    python benchmarks/counted.py

A linear of 4,096 inputs and outputs, as in LLaMA-2 7B, frozen in bfloat16 under autocast, forward and backward: what a
model of three takes more than one of two, so what serves all linears of a model at once is not counted (and `mixlora`
has no router here: it is the first linear's of a block). Every operation of PyTorch that would be a kernel is counted,
views and metadata left out, and so are the bytes of a token in the tensors that it reads and writes. Weights, which all
tokens share, are not. ``kept`` are the bytes of a token that wait for the backward pass, each storage once; the input
itself is among them, which q, k and v share. A CPU goes through the operations of an NVIDIA GPU but for three, which
take the GPU's way here: a dropout is one kernel, a product of half precision has its result in float32, and each of the
family's four steps between products is one kernel, Triton's (also counted without it). Figures are printed and kept in
``benchmarks/results/counted.json``.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from peft import PeftConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

from malora_cli.adapters import fused, logits
from malora_cli.adapters.config import MixtureConfig
from malora_cli.adapters.dropout import drop_by_device
from malora_cli.adapters.entrywise import plain
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
            self.bytes += _bytes((args, kwargs, found))
        return found

    @property
    def moved_kib(self) -> float:
        """KiB a token so far."""
        return self.bytes / TOKENS / _KIB


def _as_one_kernel(step: Callable[..., Any]) -> Callable[..., Any]:
    """One of the four steps, whose own operations are not counted."""

    def counted_once(*args: Any, **kwargs: Any) -> Any:
        mode = _get_current_dispatch_mode()
        with _disable_current_modes():
            found = step(*args, **kwargs)
        assert isinstance(mode, Counting)
        mode.kernels += 1
        mode.bytes += _bytes((args, kwargs, found))
        if step is plain.gated_gradients_:  # which also writes to what it reads
            mode.bytes += _bytes(args[:2])
        return found

    return counted_once


#: The four steps as `by_triton` has them.
STEPS = SimpleNamespace(
    **{
        name: _as_one_kernel(getattr(plain, name))
        for name in ("choose", "gate_", "gated_gradients_", "logits_gradient")
    }
)


def _mm_into_float32(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """What a CPU lacks."""
    return a.to(dtype) @ b.to(dtype)


@contextmanager
def as_on_a_gpu(*, triton: bool) -> Iterator[None]:
    """The operations of an NVIDIA GPU within the block."""

    def dropout(x: Tensor, p: float, training: bool, _inplace: bool) -> Tensor:
        return torch.native_dropout(x, p, training)[0]

    with (
        patch.object(fused, "drop", drop_by_device),
        patch.object(fused, "multiplies_into_float32", return_value=True),
        patch.object(logits, "multiplies_into_float32", return_value=True),
        patch.object(fused, "steps_for", lambda _: STEPS if triton else plain),
        patch.object(torch.nn.functional, "dropout", dropout),
    ):
        yield


def _bytes(tree: Any) -> int:
    """Of all tensors that have something for every token."""
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and TOKENS in leaf.shape]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


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


def counted(config: PeftConfig | None, names: str, *, triton: bool = True) -> Count:
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
    with as_on_a_gpu(triton=triton):
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
    table = Table(
        "linear", "dropout", "Triton", "kernels", "KiB moved a token", "KiB kept a token", box=None, pad_edge=False
    )
    found: dict[str, Any] = {}
    for dropout, triton in product((0.05, 0.0), (True, False)):
        for name, config in configurations(dropout).items():
            if not triton and not isinstance(config, MixtureConfig):
                continue
            more, fewer = (counted(config, names, triton=triton) for names in (NAMES, NAMES[:-1]))
            one = more.more_than(fewer)
            found[f"{name}, dropout {dropout:g}" + ("" if triton else ", without Triton")] = asdict(one)
            kernels, moved = (" + ".join(f"{way:.0f}" for way in ways) for ways in (one.kernels, one.moved_kib))
            table.add_row(name, f"{dropout:g}", "yes" if triton else "no", kernels, moved, f"{one.kept_kib:.1f}")
    Console(width=120).print(table)
    write_json(RESULTS, {"width": WIDTH, "tokens": TOKENS, "torch": torch.__version__, "linears": found})


if __name__ == "__main__":
    main()
