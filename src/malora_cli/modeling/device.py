"""Where a process computes."""

from __future__ import annotations

import os

import torch


def own_device() -> torch.device:
    """The CUDA GPU that a launcher gave this process, the first one without a launcher; else the CPU.

    No other accelerator is taken, Apple's least of all: losses are summed in float64, which it does not have.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
