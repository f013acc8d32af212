"""What an adapted linear asks of a GPU in training, counted and not timed: it needs none.

    python benchmarks/counted.py

One linear of 4,096 inputs and outputs, as in LLaMA-2 7B, frozen in bfloat16 under autocast, forward and backward. Every
operation of PyTorch that would be a kernel is counted, views and metadata left out, and so are the bytes of a token in
the tensors that it reads and writes. Weights, which all tokens share, are not. ``kept`` are the bytes of a token that
wait for the backward pass, each storage once; the input itself is among them, which q, k and v share. A CPU goes
through the operations of an NVIDIA GPU but for three, which take the GPU's way here: PyTorch's dropout is one kernel,
the kernel of the family draws its mask by the device's generator, and a product of half precision has its result in
float32. Figures are printed and kept in ``benchmarks/results/counted.json``.
"""

from __future__ import annotations

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
from malora_cli.results import write_json

RESULTS = Path(__file__).parent / "results" / "counted.json"
WIDTH, TOKENS = 4096, 509  # a prime number, by which tensors of tokens are known
_KIB = 1024
#: Operations that only look at a tensor in another way, beside those whose schema says so.
_FREE = ("detach", "alias", "_unsafe_view", "empty", "new_empty", "empty_like", "empty_strided", "lift_fresh", "_local")


@dataclass(frozen=True)
class Count:
    """What one pass of one linear takes; bytes are KiB a token."""

    kernels: int
    moved_kib: float


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
    def count(self) -> Count:
        """So far."""
        return Count(self.kernels, self.bytes / TOKENS / _KIB)


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


class OneLinear(nn.Module):
    """A model of one linear."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        y: Tensor = self.linear(x)
        return y


def configurations(dropout: float) -> dict[str, PeftConfig | None]:
    """What is counted, by name; None is the frozen linear alone."""
    made = {name: method(lora_dropout=dropout).peft_config(["linear"]) for name, method in METHODS.items()}
    for config in made.values():
        config.task_type = None  # one linear is no language model
    return {"frozen": None, **made}


def counted(config: PeftConfig | None) -> dict[str, Any]:
    """Kernels and bytes of a step in training."""
    torch.manual_seed(0)
    model = OneLinear().requires_grad_(False)
    adapted = model if config is None else get_peft_model(model, config)
    adapted.train()
    x = torch.randn(1, TOKENS, WIDTH).bfloat16().requires_grad_()
    kept: dict[int, int] = {}
    with as_on_a_gpu():
        with torch.autocast("cpu", dtype=torch.bfloat16), keeping(kept), Counting() as forward:
            y = adapted(x)
        gradient = torch.randn_like(y)
        with Counting() as backward:
            y.backward(gradient)
    return {
        "forward": asdict(forward.count),
        "backward": asdict(backward.count),
        "kept_kib": sum(kept.values()) / TOKENS / _KIB,
    }


def main() -> None:
    """Count, print and keep."""
    table = Table("linear", "dropout", "kernels", "KiB moved a token", "KiB kept a token", box=None, pad_edge=False)
    found: dict[str, Any] = {}
    for dropout in (0.05, 0.0):
        for name, config in configurations(dropout).items():
            one = found[f"{name}, dropout {dropout:g}"] = counted(config)
            ways = one["forward"], one["backward"]
            kernels = " + ".join(str(way["kernels"]) for way in ways)
            moved = " + ".join(f"{way['moved_kib']:.0f}" for way in ways)
            table.add_row(name, f"{dropout:g}", kernels, moved, f"{one['kept_kib']:.1f}")
    Console().print(table)
    write_json(RESULTS, {"width": WIDTH, "tokens": TOKENS, "torch": torch.__version__, "linears": found})


if __name__ == "__main__":
    main()
