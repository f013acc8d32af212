"""Where a process computes, and where it adds up in float64."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from malora_cli.errors import ModelError


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
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("mps" if wanted == "mps" else "cpu")


def exact_device(device: torch.device) -> torch.device:
    """Where sums in float64 are kept of what a device computes: there, but on the CPU for Apple's GPU."""
    return torch.device("cpu") if device.type == "mps" else device


def exact(x: Tensor) -> Tensor:
    """A tensor in float64, on `exact_device`."""
    return x.to(exact_device(x.device)).double()  # in this order
