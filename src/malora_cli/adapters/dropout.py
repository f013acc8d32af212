"""Which entries a dropout keeps; on a CPU drawn in a quarter of the numbers that PyTorch draws for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_LOTS = 1 << 16


class Drawn(NamedTuple):
    """What a dropout has drawn: ``1 / (1 - rate)`` is the product of its two factors."""

    kept: Tensor  # 1 for kept, shape of the input
    inner: float  # what the entries that are kept have been multiplied by
    outer: float  # what is left for the result of something that is linear in them


def drop(x: Tensor, p: float) -> tuple[Tensor, Drawn]:
    """The input after dropout, but for the `Drawn.outer` factor; without a history."""
    if x.is_cuda:
        return drop_by_device(x, p)
    kept, factor = draw_kept(x, p)
    return x * kept, Drawn(kept, 1.0, factor)


def drop_by_device(x: Tensor, p: float) -> tuple[Tensor, Drawn]:
    """The same by one kernel, which draws and multiplies: a GPU draws as fast as it writes."""
    dropped, kept = torch.native_dropout(x, p, True)
    return dropped, Drawn(kept, 1 / (1 - p), 1.0)


def drop_again(x: Tensor, kept: Tensor, inner: float) -> Tensor:
    """The same dropout of the same input, by what was `Drawn`."""
    return x * kept if inner == 1.0 else torch.ops.aten.native_dropout_backward(x, kept, inner)


def draw_kept(x: Tensor, p: float) -> tuple[Tensor, float]:
    """Which entries of the input a dropout keeps, and what it multiplies them by.

    Returns:
        Mask, shape of ``x``, 1 for kept, and ``1 / (1 - rate)``. It is int8: products with bool take twice as long.
    """
    if x.device.type == "cpu":
        return _by_lots(x, p)
    kept = torch.rand(x.shape, device=x.device) >= p  # whole numbers may not be drawn on Apple's GPUs
    return kept.to(torch.int8), 1 / (1 - p)


def _by_lots(x: Tensor, p: float) -> tuple[Tensor, float]:
    """Four entries share one number of the generator, 16 bits each: drawing numbers is most of what dropout costs.

    The rate is that of ``p`` in units of 2^-16, and the factor is exact for it, so nothing is biased.
    """
    lots = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(1 << 63), None)
    dropped = min(round(p * _LOTS), _LOTS - 1)
    kept = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    torch.ge(lots.view(torch.int16)[: x.numel()].view_as(x), dropped - _LOTS // 2, out=kept)
    return kept, _LOTS / (_LOTS - dropped)
