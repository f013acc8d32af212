"""The files of a project: a recipe, its mix and ``.gitignore``, written together, loadable, or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from malora_cli.errors import RunError
from malora_cli.named import load_named
from malora_cli.results import write_text

RECIPE, MIX, _IGNORED = "recipe.yaml", "mix.yaml", ".gitignore"
#: Mappings this deep stand in one line, as the columns of a task do.
_BLOCKS = 2


@dataclass(frozen=True)
class Noted:
    """A value of a document, and what is said behind it."""

    value: Any
    note: str


def document(head: str, data: Mapping[str, Any]) -> str:
    """A YAML file that people read: a comment on top, and behind every `Noted` value what is said of it."""
    return "\n".join([f"# {head}", *_lines(data, 0)]) + "\n"


def relative(path: Path, folder: Path) -> str:
    """A path as a file in ``folder`` names it."""
    return Path(os.path.relpath(path, folder)).as_posix()


def write_project(recipe: Path, mix: Path, texts: tuple[str, str]) -> list[Path]:
    """Write a recipe and its mix, and see to it that they load.

    Args:
        recipe: Where the recipe goes.
        mix: Where the mix goes, in the same folder.
        texts: What they hold.

    Returns:
        What was written: the two, and ``.gitignore`` where there was none.

    Raises:
        RunError: A file is in the way, or cannot be written.
        RecipeError: They do not load. Nothing stays on disk then.
    """
    folder = recipe.parent
    check_free(recipe, mix)
    files = dict(zip((recipe, mix), texts, strict=True))
    if not (folder / _IGNORED).exists():
        files[folder / _IGNORED] = f"{_runs_of(texts[0])}/\n"
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        for path, text in files.items():
            write_text(path, text)
        load_named(recipe)
    except BaseException as error:
        _remove(files, made)
        if isinstance(error, OSError):
            raise RunError(f"it cannot be written ({error.strerror})", where=str(folder)) from error
        raise
    return list(files)


def check_free(*paths: Path) -> None:
    """Make sure that nothing lies where files are going to be written.

    Raises:
        RunError: Something does; all that is in the way is named.
    """
    there = [str(path) for path in paths if os.path.lexists(path)]
    if len(there) == 1:
        raise RunError("it is there already, and is not overwritten", where=there[0], fix="Move it away.")
    if there:
        what = "they are there already, and are not overwritten"
        raise RunError(what, where=" and ".join(there), fix="Move them away.")


def _runs_of(recipe: str) -> str:
    """The folder of the runs of a recipe that is about to be written."""
    output = (yaml.safe_load(recipe) or {}).get("output") or {}
    return str(output.get("folder", "runs")).rstrip("/")


def _remove(files: Mapping[Path, str], folders: list[Path]) -> None:
    for path in files:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    for folder in folders:
        with suppress(OSError):  # something else has come into it
            folder.rmdir()


def _lines(data: Mapping[str, Any], depth: int) -> Iterator[str]:
    for key, given in data.items():
        value, note = (given.value, given.note) if isinstance(given, Noted) else (given, "")
        head, tail = f"{'  ' * depth}{scalar(key)}:", f"  # {' '.join(note.split())}" if note else ""
        if isinstance(value, Mapping) and value and depth < _BLOCKS:
            yield f"{head}{tail}"
            yield from _lines(value, depth + 1)
        else:
            yield f"{head} {_flow(value)}{tail}"


def _flow(value: Any) -> str:
    """A value in one line."""
    if isinstance(value, Noted):
        return _flow(value.value)
    if isinstance(value, str):
        return scalar(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return json.dumps(value)


def scalar(text: str) -> str:
    """A text as YAML has it, in quotes where it needs them."""
    plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", text, re.ASCII) and not _is_another_value(text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _is_another_value(text: str) -> bool:
    """Whether either version of YAML reads a text as a number or a constant."""
    words = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", ".inf", ".nan"}
    return text.lower() in words or re.fullmatch(r"\.[0-9_.e+-]*", text) is not None
