"""A recipe or mix file as a document, or the one line that says why it is none."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from malora_cli.errors import RecipeError
from malora_cli.recipe.problems import show
from malora_cli.yaml_lines import Document, LimitError, Origin, read_text, read_yaml

_FIX = {
    "recipe": "Start from one that works: `malora recipes cp quickstart`.",
    "mix": "Give it at least `tasks:` with one task.",
}

#: What helps, by the words that PyYAML has for it.
_YAML_FIXES = {
    "\\t": "Indent with spaces, not tabs.",
    "alias": "Put text that begins with * in quotes.",
    "mapping values": "Put a space after each colon, and indent the settings of a section alike.",
    "expected ','": "Close every bracket and quote, and put commas between values.",
    "document": "One file holds one mapping of settings.",
}


def shown_path(path: Path) -> str:
    """A path as messages show it: from the current folder where it lies below, else whole."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 (links stay as the user knows them, '..' goes)
    here = Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def read_document(path: Path, what: str) -> Document:
    """Read a YAML file that holds a mapping.

    Args:
        path: The file.
        what: What it should hold, for messages, such as ``"recipe"``.

    Raises:
        RecipeError: There is no such file, or it is no text, no YAML, empty or no mapping.
    """
    shown, folder = shown_path(path), _folder_of(path)
    try:
        document = read_yaml(_text(path, shown, what), lambda line: Origin(f"{shown}:{line}", folder))
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, shown) from error
    except yaml.YAMLError as error:  # a character that YAML forbids; it knows no line
        reason = getattr(error, "reason", "it cannot be read")
        raise RecipeError(f"not valid YAML: {reason}", where=shown, fix="Save it as plain text.") from error
    if document.data is None:
        raise RecipeError(f"the file is empty, not a {what}", where=shown, fix=_FIX.get(what))
    if not isinstance(document.data, dict):
        where = document.origins[()].where
        raise RecipeError(f"got {show(document.data)}; a {what} is a mapping", where=where, fix=_FIX.get(what))
    return document


def _folder_of(path: Path) -> Path:
    """What paths in a file are relative to: where a link leads, unless that is a store of files without their names."""
    file = path.resolve()
    return file.parent if file.suffix == path.suffix else path.parent.resolve()


def _text(path: Path, shown: str, what: str) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        fix = "`malora recipes ls` lists what is shipped." if what in _FIX else None
        raise RecipeError("file not found", where=shown, fix=fix) from None
    except IsADirectoryError:
        kind = "a .yaml file" if what in _FIX else "a file"
        raise RecipeError("this is a folder", where=shown, fix=f"Name {kind} in it.") from None
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text (byte {error.object[error.start]:#04x} at position {error.start})"
        raise RecipeError(what, where=shown, fix="Save it as UTF-8.") from None
    except OSError as error:
        raise RecipeError(f"cannot be read ({error.strerror})", where=shown) from error


def _not_yaml(error: yaml.MarkedYAMLError, shown: str) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    where = f"{shown}:{mark.line + 1}:{mark.column + 1}" if mark else shown
    problem = error.problem or error.context or "it cannot be read"
    if isinstance(error, LimitError):
        return RecipeError(problem, where=where, fix="No recipe needs as much.")
    said = f"{error.context} {problem}"
    fix = next((fix for words, fix in _YAML_FIXES.items() if words in said), None)
    return RecipeError(f"not valid YAML: {problem}", where=where, fix=fix)
