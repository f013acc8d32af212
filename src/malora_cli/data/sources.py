"""Rows from a file, a folder or a hub dataset, through `datasets`; every way they can be wrong in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value, load_dataset, load_from_disk

from malora_cli.data.text_files import COMPRESSED, LineError, delimiter_of, first_fault, header_of, kind_of
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings
from malora_cli.registry import did_you_mean

_READERS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_USE = f"Use one of {', '.join(_READERS)}, as it is or compressed ({', '.join(COMPRESSED)})."
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_rows(source: SourceSettings, *, split: str) -> Dataset:
    """The rows of one split of a task.

    Args:
        source: Where they are.
        split: Split to take of a folder or hub dataset when the source names none.

    Raises:
        DataError: Nothing is there, it cannot be read, or it has no rows.
    """
    path = Path(source.path)
    try:
        rows = _read_file(path) if path.is_file() else _read_dataset(source, split)
        # The readers take text on trust; bytes that are none would be met only later, row by row.
        rows.data.validate(full=True)
    except DataError:
        raise
    except Exception as error:  # readers of many formats, compressions and stores raise anything
        raise _unreadable(source, error) from error
    if len(rows) == 0:
        raise DataError("has no rows", where=source.path)
    return rows


def _read_file(path: Path) -> Dataset:
    kind = kind_of(path)
    if kind not in _READERS:
        raise DataError(
            f"rows cannot be read from '{kind}' files" if kind else "the file has no suffix that says what it holds",
            where=str(path),
            fix=_USE,
        )
    if path.stat().st_size == 0:
        raise DataError("the file is empty", where=str(path))
    options: dict[str, Any] = {}
    if _READERS[kind] == "csv":
        options = _table_options(path)
    elif _READERS[kind] == "parquet":
        options = {"batch_size": 10_000}  # by default that of the first row group, which may be 0
    return load_dataset(_READERS[kind], data_files=str(path), split="train", **options)


def _table_options(path: Path) -> dict[str, Any]:
    """How a CSV or TSV file is read: as text, since a guessed type would make 7 of 007 and nothing of None."""
    header = header_of(path)
    if not header:
        raise DataError("has no rows", where=str(path))
    text = Features({name: Value("string") for name in header if name})
    return {"delimiter": delimiter_of(path), "features": text or None, "keep_default_na": False}


def _read_dataset(source: SourceSettings, split: str) -> Dataset:
    path = Path(source.path)
    if (path / "state.json").is_file():
        rows = load_from_disk(str(path))
        if source.split not in (None, str(rows.split)):
            raise DataError(
                f"there is no split '{source.split}'; this saved dataset is one split by itself",
                where=source.path,
                fix="Leave `split` out, or name the folder of the other split.",
            )
        return rows
    is_path = path.is_absolute() or kind_of(path) in _READERS or source.path.startswith((".", "~"))
    if not path.is_dir() and (is_path or not _HUB_ID.fullmatch(source.path)):
        raise DataError("there is no such file or folder", where=source.path)
    return load_dataset(source.path, source.config, split=source.split or split, revision=source.revision)


def _unreadable(source: SourceSettings, error: Exception) -> DataError:
    path = Path(source.path)
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    if "corresponds to no data" in str(root):
        return DataError("has no rows", where=source.path)
    if not path.exists():
        return DataError(
            f"is no file or folder here, and cannot be had from the hub ({_reason(root)})",
            where=source.path,
            fix="Name a file, a folder or a hub dataset that this machine can reach, and a config and split it has.",
        )
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    for file in files:
        fault = error if isinstance(error, LineError) else first_fault(file)
        if fault is not None:
            return DataError(fault.what, where=f"{file}:{fault.line}", fix="Mend or remove the line.")
    if not any(kind_of(file) in _READERS for file in files):
        return DataError("the folder holds no rows", where=source.path, fix=_USE)
    fix = "Mend or replace it." if path.is_file() else "Mend it, or name a config and split that it has."
    return DataError(f"cannot be read ({_reason(root)})", where=source.path, fix=fix)


def _reason(error: BaseException) -> str:
    if isinstance(error, ConnectionError):
        return "it cannot be reached"
    text = (str(error).strip().splitlines() or [""])[0]
    if type(error).__name__.startswith("Arrow") and "JSON" not in text:
        return "the data are damaged, or not what their name says"
    # Rows are counted within a block, which helps nobody find one.
    return re.sub(r" in row \d+$", "", text).rstrip(".") or type(error).__name__


def check_columns(rows: Dataset, columns: dict[str, str], source: SourceSettings) -> None:
    """Make sure that every mapped column is there.

    Args:
        rows: The rows.
        columns: Column of the data for each role.
        source: Where the rows came from, for the message.

    Raises:
        DataError: One is missing.
    """
    for role, column in columns.items():
        if column not in rows.column_names:
            raise DataError(
                f"there is no column '{column}' for '{role}'; {did_you_mean(column, rows.column_names)}",
                where=source.path,
                fix=f"Map it in the mix, as in `columns: {{{role}: COLUMN}}`.",
            )
