"""Where the files lie that a recipe names: which settings are paths, and what becomes of these when a run is moved."""

from __future__ import annotations

import os
from collections.abc import Iterator
from glob import has_magic, iglob
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

#: Settings of a recipe that name files to be read, in whatever section.
PLACES = frozenset(("base", "chat_template", "path"))


def follow(recipe: dict[str, Any], was: Path, now: Path) -> None:
    """Let paths in a run's recipe that are gone lead to where their files lie as seen from the run's folder.

    So a run that was moved alone finds its files where they were, and one that was moved with its project finds them
    there. That they are the same is for hashes to say.

    Args:
        recipe: The resolved recipe, as plain data; it is changed.
        was: Where the run lay when it was written.
        now: Where it lies.
    """
    if was == now:
        return
    for section, key in _places(recipe):
        text = section[key]
        moved = os.path.normpath(now / os.path.relpath(text, was))
        if not is_there(text) and is_there(moved):
            section[key] = moved


def leave_out_places(recipe: dict[str, Any]) -> None:
    """Remove the absolute paths from a resolved recipe, which differ from machine to machine; it is changed."""
    for section, key in list(_places(recipe)):
        del section[key]


def absolute(text: str) -> PurePath | None:
    """A text as a path, where it is an absolute one on some system."""
    kinds: tuple[type[PurePath], ...] = (PurePosixPath, PureWindowsPath)
    return next((path for kind in kinds if (path := kind(text)).is_absolute()), None)


def gone(recipe: dict[str, Any]) -> Iterator[str]:
    """The absolute paths in a resolved recipe at which nothing lies."""
    yield from (section[key] for section, key in _places(recipe) if not is_there(section[key]))


def is_there(path: str) -> bool:
    """Whether something lies at a path, or matches it where it is a pattern."""
    return os.path.lexists(path) or (has_magic(path) and any(iglob(path, recursive=True)))  # noqa: PTH207


def _places(recipe: Any) -> Iterator[tuple[dict[str, Any], str]]:
    if isinstance(recipe, dict):
        for key, value in recipe.items():
            if key in PLACES and isinstance(value, str) and os.path.isabs(value):  # noqa: PTH117
                yield recipe, key
            else:
                yield from _places(value)
