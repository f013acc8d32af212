"""Where a process computes, in which number format, and where it adds up in float64."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from malora_cli.errors import ModelError
from malora_cli.processor import multiplies_bfloat16
from malora_cli.recipe import LoadedRecipe, ModelSettings


def own_device(wanted: str = "auto") -> torch.device:
    """The device that a recipe asks for.

    Args:
        wanted: ``auto`` is the CUDA GPU that a launcher gave this process, the first one without a launcher, and the
            CPU where there is none. Apple's GPU has to be named.

    Raises:
        ModelError: It is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(wanted, True):
        raise ModelError(f"got {wanted}, and PyTorch finds none here", where="model.device", fix="Set it to auto.")
    if wanted == "cuda" or (wanted == "auto" and there["cuda"]):
        # A launcher may show each process a GPU of its own; so does accelerate reckon.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count()))
    return torch.device("mps" if wanted == "mps" else "cpu")


def dtype_of(settings: ModelSettings) -> str:
    """The number format of the frozen weights, as torch calls it; here is what ``auto`` comes to.

    Raises:
        ModelError: The device is not there.
    """
    if settings.dtype != "auto":
        return settings.dtype
    on_gpu = own_device(settings.device).type == "cuda"
    # Older GPUs take it, too, but compute in float32.
    return "bfloat16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def settled(loaded: LoadedRecipe) -> LoadedRecipe:
    """A recipe with the number format that its model has here."""
    return loaded.with_dtype(dtype_of(loaded.recipe.model))


def slow_format(settings: ModelSettings) -> str | None:
    """Why a number format takes far longer here than float32, and what to do; None where it does not."""
    if dtype_of(settings) != "bfloat16" or own_device(settings.device).type != "cpu" or multiplies_bfloat16():
        return None
    return (
        "model.dtype is bfloat16, which this processor does not compute in: steps take several times as long as in "
        "float32, which auto takes here"
    )


def exact_device(device: torch.device) -> torch.device:
    """Where sums in float64 are kept of what a device computes: there, but on the CPU for Apple's GPU."""
    return torch.device("cpu") if device.type == "mps" else device


def exact(x: Tensor) -> Tensor:
    """A tensor in float64, on `exact_device`."""
    return x.to(exact_device(x.device)).double()  # in this order
