"""Products that stay float32 where PyTorch has been allowed to round them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

#: What float32 products are rounded to under ``allow_tf32`` or ``set_float32_matmul_precision``.
_ROUNDED = ("tf32", "bf16")


def rounds_float32(device_type: str) -> bool:
    """Whether float32 matrices are multiplied with fewer bits here, as TF32 does with 10 of 23."""
    return getattr(_matmul(device_type), "fp32_precision", None) in _ROUNDED


@contextmanager
def float32_products(device_type: str) -> Iterator[None]:
    """Within the block nothing rounds the inputs of a float32 product, neither autocast nor TF32."""
    if not torch.is_autocast_enabled(device_type):
        with _unrounded(device_type):
            yield
        return
    with torch.autocast(device_type, enabled=False), _unrounded(device_type):
        yield


@contextmanager
def _unrounded(device_type: str) -> Iterator[None]:
    # What a graph is compiled with holds for all of it.
    if torch.compiler.is_compiling() or not rounds_float32(device_type):
        yield
        return
    matmul = _matmul(device_type)
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _matmul(device_type: str) -> Any:
    """PyTorch's settings for matrix products; without ``fp32_precision`` before PyTorch 2.9."""
    return torch.backends.cuda.matmul if device_type == "cuda" else getattr(torch.backends.mkldnn, "matmul", None)
