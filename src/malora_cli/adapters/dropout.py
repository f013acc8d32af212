"""Which entries a dropout keeps; on a CPU drawn in a quarter of the numbers that PyTorch draws for it."""

from __future__ import annotations

import torch
from torch import Tensor

_LOTS = 1 << 16


def draw_kept(x: Tensor, p: float) -> tuple[Tensor, float]:
    """Which entries of the input a dropout keeps, and what it multiplies them by.

    Returns:
        Mask, shape of ``x``, 1 for kept, and ``1 / (1 - rate)``. It is int8: products with bool take twice as long.
    """
    return _by_lots(x, p) if x.device.type == "cpu" else (kept_by_device(x, p), 1 / (1 - p))


def kept_by_device(x: Tensor, p: float) -> Tensor:
    """The mask by the device's own generator, which is not what a GPU waits for."""
    if x.device.type == "mps":  # which may not draw whole numbers
        return (torch.rand(x.shape, device=x.device) >= p).to(torch.int8)
    return torch.empty(x.shape, dtype=torch.int8, device=x.device).bernoulli_(1 - p)


def _by_lots(x: Tensor, p: float) -> tuple[Tensor, float]:
    """Four entries share one number of the generator, 16 bits each: drawing numbers is most of what dropout costs.

    The rate is that of ``p`` in units of 2^-16, and the factor is exact for it, so nothing is biased.
    """
    lots = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(1 << 63), None)
    dropped = min(round(p * _LOTS), _LOTS - 1)
    kept = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    torch.ge(lots.view(torch.int16)[: x.numel()].view_as(x), dropped - _LOTS // 2, out=kept)
    return kept, _LOTS / (_LOTS - dropped)
