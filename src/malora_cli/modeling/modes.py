"""The modes in which a model computes: number format, dropout, checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


def autocast_dtype(dtype: torch.dtype, device: str) -> torch.dtype | None:
    """The number format in which training multiplies on a base model of this one; None where it is left as it is.

    Args:
        dtype: Of the base model's weights.
        device: Type of the device, such as ``"cuda"``.
    """
    if dtype == torch.bfloat16 and (device == "cpu" or (device == "cuda" and torch.cuda.is_bf16_supported())):
        return dtype
    return dtype if dtype == torch.float16 and device == "cuda" else None


def as_trained(model: nn.Module) -> AbstractContextManager[Any]:
    """Multiply within the block as training does: mixed, where the base model is in half precision."""
    device = next(model.parameters()).device.type
    dtype = autocast_dtype(model.dtype, device)  # type: ignore[arg-type]
    return nullcontext() if dtype is None else torch.autocast(device, dtype=dtype)


@contextmanager
def evaluating(model: nn.Module, *, checkpointing: bool = False) -> Iterator[None]:
    """Without dropout within the block; afterwards every module is in its mode again, also where the block raises.

    Args:
        model: Any model.
        checkpointing: Keep gradient checkpointing where it is on; transformers' layers do it in training only.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        if checkpointing:
            for module, training in modes:
                module.training = training and bool(getattr(module, "gradient_checkpointing", False))
        yield
    finally:
        for module, training in modes:
            module.training = training
