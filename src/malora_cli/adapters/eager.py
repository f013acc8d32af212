"""Functions that ``torch.compile`` leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")


def eager(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, which acts on what is outside of a compiled graph: a graph would keep what it was compiled by."""
    disabled: Callable[_P, _R] = torch.compiler.disable(function)
    return disabled
