"""Rows from a file, a folder or a hub dataset, through `datasets`; every way they can be wrong in one line."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
from datasets import Dataset, load_dataset, load_from_disk

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
_COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}


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
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreadable(source, error) from error
    if len(rows) == 0:
        raise DataError("has no rows", where=source.path)
    return rows


def _read_file(path: Path) -> Dataset:
    suffix = next((s for s in reversed(path.suffixes) if s not in _COMPRESSED), path.suffix)
    if suffix not in _READERS:
        raise DataError(
            f"rows cannot be read from '{suffix}' files",
            where=str(path),
            fix=f"Use one of {', '.join(_READERS)}, compressed or not.",
        )
    if path.stat().st_size == 0:
        raise DataError("the file is empty", where=str(path))
    options = {"delimiter": "\t"} if suffix == ".tsv" else {}
    return load_dataset(_READERS[suffix], data_files=str(path), split="train", **options)


def _read_dataset(source: SourceSettings, split: str) -> Dataset:
    path = Path(source.path)
    if path.is_dir() and (path / "state.json").is_file():
        return load_from_disk(str(path))
    if not path.is_dir() and (path.is_absolute() or path.suffix in _READERS or source.path.startswith((".", "~"))):
        raise DataError("there is no such file or folder", where=source.path)
    return load_dataset(source.path, source.config, split=source.split or split, revision=source.revision)


def _unreadable(source: SourceSettings, error: Exception) -> DataError:
    line = _first_bad_line(Path(source.path))
    if line is not None:
        number, reason = line
        return DataError(f"is no JSON ({reason})", where=f"{source.path}:{number}", fix="Mend or remove the line.")
    root = error
    while root.__cause__ is not None:
        root = root.__cause__  # type: ignore[assignment]
    reason = str(root).strip().splitlines()[0] if str(root).strip() else type(root).__name__
    return DataError(
        f"cannot be read ({reason})",
        where=source.path,
        fix="Name a file, a folder, or a hub dataset that this machine can reach.",
    )


def _first_bad_line(path: Path) -> tuple[int, str] | None:
    """Number and fault of the first line of a JSONL file that is no JSON object; None when there is none."""
    if path.suffix != ".jsonl" or not path.is_file():
        return None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as fault:
                return number, f"it is not UTF-8 at byte {fault.start}"
            except json.JSONDecodeError as fault:
                return number, f"{fault.msg} at column {fault.colno}"
            if not isinstance(value, dict):
                return number, "it is not an object"
    return None


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
