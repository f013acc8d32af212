"""Environment variables in the paths of sources: their values find the rows, and are never written down or shown."""

from __future__ import annotations

import os
from dataclasses import replace
from glob import iglob
from pathlib import Path

from malora_cli.data.rows import Rows
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings


def with_values(source: SourceSettings) -> SourceSettings:
    """A source as it is found on this machine now.

    Raises:
        DataError: It names a variable and lies nowhere here. It is not asked for elsewhere: the value of a variable of
            somebody's choice would go with it.
    """
    path = _filled(source.path)
    if path == source.path:
        return source
    if not Path(path).exists() and not any(iglob(path, recursive=True)):  # noqa: PTH207 - the pattern holds its folder
        raise DataError("file or folder not found", where=source.path)
    return source.model_copy(update={"path": path})


def rows_as_given(rows: Rows, source: SourceSettings) -> Rows:
    """Rows that say of themselves what the recipe says."""
    files = [replace(file, name=_as_given(file.name, source.path)) for file in rows.places.files]
    return replace(rows, settings=source, places=replace(rows.places, source=source.path, files=files))


def error_as_given(error: DataError, source: SourceSettings) -> DataError:
    """An error that names what the recipe names."""
    what, where, fix = (text and _as_given(text, source.path) for text in (error.what, error.where, error.fix))
    return DataError(what or "", where=where, fix=fix)


def _filled(path: str) -> str:
    filled = os.path.expandvars(path)
    return path if filled == path else os.path.expanduser(filled)  # noqa: PTH111 (pathlib's raises for unknown users)


def _as_given(text: str, path: str) -> str:
    """A text with the beginning of a path, as far as its last variable, put back for what stands for it."""
    parts = path.split("/")
    last = max((number for number, part in enumerate(parts) if _filled(part) != part), default=-1)
    begin = "/".join(parts[: last + 1])
    if begin:
        for filled in (_filled(begin), str(Path(_filled(begin)).resolve())):
            text = text.replace(filled, begin)
    return text
