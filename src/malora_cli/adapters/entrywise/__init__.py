"""The arithmetic of a routed linear between its products, entry by entry, in four steps.

``plain`` has them by PyTorch's operations, ``by_triton`` as a kernel each, and `steps_for` says which are taken.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from malora_cli.adapters.entrywise import plain
from malora_cli.adapters.entrywise.pull import Pull
from malora_cli.adapters.entrywise.steps import Steps
from malora_cli.adapters.entrywise.trial import Sizes, differing
from malora_cli.adapters.logits import HALF

__all__ = ["SWITCH", "TRIED", "Pull", "Steps", "failing", "plain", "steps_for", "unasked"]

#: What Triton's kernels are tried on.
TRIED = (Sizes(), Sizes(experts=4, top_k=1, renormalize=False, terms=1, masked=False, dtype=torch.float16))
#: Environment variable; 0 keeps a GPU to PyTorch's operations.
SWITCH = "MALORA_TRITON"


def steps_for(x: Tensor) -> Steps:
    """The steps for an input of this format where it lies; evaluation is not asked, for a bundle has the plain ones."""
    return _on_gpu(x.device) if x.is_cuda and x.dtype in HALF else plain


@cache
def _on_gpu(device: torch.device) -> Steps:
    """Triton's, where they compute what the plain ones do; asked once for each GPU."""
    if unasked():
        return plain
    if why := failing(device):
        warnings.warn(
            f"Triton's kernels are not used on {device}, but PyTorch's operations, which are slower: {why}. "
            f"{SWITCH}=0 goes without asking.",
            stacklevel=3,
        )
        return plain
    from malora_cli.adapters.entrywise import by_triton

    return by_triton


def unasked() -> str:
    """Why Triton is not asked for here, though there is a GPU; empty where it is."""
    if torch.version.hip is not None:
        return "this PyTorch is for AMD's GPUs"
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    return "" if find_spec("triton") else "Triton is not installed"  # it comes with PyTorch for NVIDIA's GPUs, on Linux


def failing(device: torch.device) -> str:
    """Why Triton's kernels do not work on a GPU; empty where they do, and give what the plain steps do."""
    try:
        from malora_cli.adapters.entrywise import by_triton

        wrong = [name for sizes in TRIED for name in differing(by_triton, plain, sizes, device)]
    except Exception as error:  # no C compiler, a GPU that Triton does not know: whatever it is, there is another way
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{', '.join(wrong)} would differ" if wrong else ""
