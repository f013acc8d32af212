"""What the options of a comparison say, read from their text."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from math import isfinite
from typing import Literal

from malora_cli.errors import RecipeError
from malora_cli.registry import unknown

#: What a name may be made of: it stands in those of run folders, where this means training on a single task.
_NAME, _SINGLE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"), "-only-"


def parse_variants(methods: Sequence[str], known: Collection[str]) -> dict[str, str]:
    """``["lora", "lora-r64=lora"]`` as ``{"lora-r64": "lora"}``: methods under further names.

    Args:
        methods: As they were named.
        known: Names of all methods.

    Raises:
        RecipeError: Such a name cannot be one, or is taken; or there is no such method.
    """
    found: dict[str, str] = {}
    taken = {name.casefold() for name in known}  # some disks do not tell cases apart
    for text in methods:
        name, equals, method = (part.strip() for part in text.partition("="))
        if not equals:
            continue
        if not _NAME.fullmatch(name) or _SINGLE in name:
            raise RecipeError(
                f"'{name}' cannot be a name of '{text}'",
                where="--methods",
                fix=f"Write it as NAME=METHOD; a name has letters, digits, '.', '_' and '-', and no '{_SINGLE}'.",
            )
        if name.casefold() in taken:
            raise RecipeError(f"'{name}' is taken", where="--methods", fix=f"Use another name in '{text}'.")
        taken.add(name.casefold())
        if method not in known:
            raise RecipeError(unknown("method", method, known), where="--methods")
        found[name] = method
    return found


def parse_method_overrides(texts: Sequence[str]) -> dict[str, list[str]]:
    """``["lora:train.learning_rate=1e-3"]`` as ``{"lora": ["train.learning_rate=1e-3"]}``.

    Raises:
        RecipeError: One has no method in front.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        method, colon, override = text.partition(":")
        if not colon or "=" in method:
            raise RecipeError(
                f"'{text}' names no method", where="--for", fix="Write it as METHOD:section.setting=value."
            )
        found.setdefault(method, []).append(override)
    return found


def parse_seeds(text: str) -> list[int]:
    """``"0,1,2"`` as numbers.

    Raises:
        RecipeError: It is something else, or one stands there twice.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"'{text}' is not a list of seeds", where="--seeds", fix="Write it as 0,1,2.") from None
    if len(set(seeds)) < len(seeds):
        raise RecipeError(f"a seed stands twice in '{text}'", where="--seeds", fix="Name each once.")
    return seeds


def parse_tuning(text: str) -> tuple[float, ...] | Literal["auto", "none"]:
    """``"lr=1e-4,3e-4"`` as rates from low to high; ``auto`` and ``none`` as they are.

    Raises:
        RecipeError: It is something else, or not a grid.
    """
    if text == "auto":
        return "auto"
    if text == "none":
        return "none"
    kind, equals, listed = text.partition("=")
    try:
        rates = sorted({float(part) for part in listed.split(",")}) if kind == "lr" and equals else None
    except ValueError:
        rates = None
    if rates is None or not all(isfinite(rate) for rate in rates):
        raise RecipeError(f"'{text}' is not a tuning", where="--tune", fix="Write auto, none or lr=1e-4,3e-4,1e-3.")
    if len(rates) < 2 or rates[0] <= 0:
        raise RecipeError(
            f"got {text}; a grid has two learning rates at least, all above 0", where="--tune", fix="Or leave it out."
        )
    return tuple(rates)
