"""What a prompt format is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One row as text.

    Args:
        prompt: What the user says.
        completion: What the model is to answer; only this is supervised.
    """

    prompt: str
    completion: str


@dataclass(frozen=True)
class Format:
    """How the columns of a row become text.

    Args:
        roles: What the format needs of a row; a mix maps a column to each.
        example: Text of a row, given as role to text.
    """

    roles: tuple[str, ...]
    example: Callable[[Mapping[str, str]], Example]
