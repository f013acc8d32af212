"""Matrix products in float32 on a CPU, by the faster of the two libraries that PyTorch carries.

PyTorch multiplies float32 matrices by MKL, which on a processor that is not Intel's leaves the widest vectors unused;
oneDNN, which PyTorch carries for other ends, does not. For the products of a training step, from the same matrices, it
took 0.41 to 0.59 of MKL's time on an AMD Zen 5, and 0.73 to 1.01 on a Zen 4, whose widest vectors take two passes
(``benchmarks/adapters.py products``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from malora_cli.processor import is_amd

#: Multiplications below which what a call of oneDNN costs by itself, some 10 microseconds, is more than it saves.
_WORTH_IT = 1 << 21
#: See `by_pytorch`.
_BY_PYTORCH = ContextVar("_BY_PYTORCH", default=False)


@contextmanager
def by_pytorch() -> Iterator[None]:
    """Within the block products are PyTorch's own, as they are for those who load a model without this package.

    Rounding alone, but in a router it can turn a near tie between two experts.
    """
    before = _BY_PYTORCH.set(True)
    try:
        yield
    finally:
        _BY_PYTORCH.reset(before)


@cache
def prefers_onednn() -> bool:
    """Whether float32 products are better left to oneDNN here: PyTorch would take MKL, and the processor is AMD's."""
    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and is_amd()


def _by_onednn(a_MK: Tensor, b_NK: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and a_MK.numel() * b_NK.shape[0] >= _WORTH_IT
        and a_MK.device.type == "cpu"
        and a_MK.dtype == b_NK.dtype == torch.float32
        and not _BY_PYTORCH.get()
        and prefers_onednn()
    )


def product(a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """``a b^T``, plus a bias; without a history, so for the inside of autograd functions and where none is wanted.

    Args:
        a_MK: Left matrix, shape ``(M, K)``, with any strides.
        b_NK: Right matrix, transposed: shape ``(N, K)``, with any strides.
        bias_N: Added to every row.
    """
    if _by_onednn(a_MK, b_NK):
        # The operator behind `torch.compile`'s linears; PyTorch has no public name for it.
        return torch.ops.mkldnn._linear_pointwise.default(_laid_out(a_MK), _laid_out(b_NK), bias_N, "none", [], "")
    return F.linear(a_MK, b_NK, bias_N)


def _laid_out(m: Tensor) -> Tensor:
    """The matrix without gaps, by rows or by columns.

    From a part of a wider matrix, or an expanded one, oneDNN takes a hundred times as long.
    """
    return m if m.is_contiguous() or m.T.is_contiguous() else m.contiguous()


def add_product(y_MN: Tensor, a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """``y`` with ``a b^T`` added in place."""
    if _by_onednn(a_MK, b_NK):
        return y_MN.add_(product(a_MK, b_NK))
    return y_MN.addmm_(a_MK, b_NK.T)
