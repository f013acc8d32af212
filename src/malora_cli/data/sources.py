"""Rows from a file, a folder or a hub dataset, through `datasets`; every way they can be wrong in one line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import (
    Dataset,
    DatasetBuilder,
    Features,
    Value,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)

from malora_cli.data.cache import cached, key_of
from malora_cli.data.text_files import COMPRESSED, LineError, delimiter_of, first_fault, header_of, kind_of
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings

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
_LOT = 10_000
_STREAMED = "rows.arrow"


@dataclass(frozen=True)
class Rows:
    """The rows of one split as they are in their source.

    Args:
        dataset: All columns, memory-mapped.
        settings: Where they are.
    """

    dataset: Dataset
    settings: SourceSettings

    @property
    def source(self) -> str:
        """Where they are, for messages."""
        return self.settings.path

    def sha256(self, used: Dataset) -> str:
        """Hash of what some columns hold, wherever the file lies and whatever it is called; kept in the cache.

        Args:
            used: The dataset with these columns alone.

        Raises:
            DataError: A text of theirs is none: the readers take that on trust.
        """
        key = key_of("content", self.dataset._fingerprint, used.column_names)
        return str(cached(key, lambda _: {"source": self.source, "sha256": self._hash(used)})[1]["sha256"])

    def _hash(self, used: Dataset) -> str:
        digest = hashlib.sha256()
        try:
            for table in used.with_format("arrow").iter(_LOT):
                table.validate(full=True)
                for batch in table.combine_chunks().to_batches():
                    digest.update(batch.serialize())
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise _unreadable(self.settings, error) from error
        return digest.hexdigest()


def load_rows(source: SourceSettings, *, split: str) -> Rows:
    """The rows of one split of a task.

    Args:
        source: Where they are.
        split: Split to take of a folder or hub dataset when the source names none.

    Raises:
        DataError: Nothing is there, it cannot be read, or it has no rows.
    """
    try:
        rows = _read(source, split)
    except DataError:
        raise
    except Exception as error:  # readers of many formats, compressions and stores raise anything
        raise _unreadable(source, error) from error
    if len(rows) == 0:
        raise DataError("has no rows", where=source.path)
    return Rows(rows, source)


def _read(source: SourceSettings, split: str) -> Dataset:
    files = files_of(source.path)
    if files:
        where, options, split = _reader_of(files)
    elif (Path(source.path) / "state.json").is_file():
        return _saved(source)
    else:
        where, split = _dataset_of(source), source.split or split
        options = {"name": source.config, "revision": source.revision}
    if source.stream is None:
        return load_dataset(where, split=split, **options)
    builder = load_dataset_builder(where, **options)
    # The folder it would keep its rows in is named after all that decides them, a revision or a file's time included.
    key = key_of("stream", builder.cache_dir, split, source.stream)
    folder, _ = cached(key, lambda scratch: _stream(builder, split, source, scratch))
    return Dataset.from_file(str(folder / _STREAMED))


def _stream(builder: DatasetBuilder, split: str, source: SourceSettings, scratch: Path) -> dict[str, Any]:
    """Write the first rows of a source, a lot at a time."""
    rows = builder.as_streaming_dataset(split=split).take(source.stream).with_format("arrow").iter(_LOT)
    count = 0
    with ExitStack() as stack:
        writer = None
        for table in rows:
            if writer is None:
                file = stack.enter_context((scratch / _STREAMED).open("wb"))
                writer = stack.enter_context(pa.ipc.new_stream(file, table.schema))
            writer.write_table(table)
            count += len(table)
    if not count:
        raise DataError("has no rows", where=source.path)
    return {"source": source.path, "rows": count}


def files_of(path: str) -> list[Path]:
    """The file of a path, or the files of a pattern in the order of their names; none for anything else.

    Raises:
        DataError: No file has a name like the pattern.
    """
    if Path(path).is_file():
        return [Path(path)]
    if not has_magic(path) or Path(path).is_dir():
        return []
    named = glob(path, recursive=True)  # noqa: PTH207 - the pattern holds its folder
    found = sorted(Path(name) for name in named if Path(name).is_file())
    if not found:
        raise DataError("no file has a name like this", where=path)
    return found


def _reader_of(files: Sequence[Path]) -> tuple[str, dict[str, Any], str]:
    """Name of the reader, its options, and the split that all rows of a file are."""
    for file in files:
        kind = kind_of(file)
        if kind not in _READERS:
            raise DataError(
                f"rows cannot be read from '{kind}' files"
                if kind
                else "the file has no suffix that says what it holds",
                where=str(file),
                fix=_USE,
            )
        if _READERS[kind] != _READERS[kind_of(files[0])] or (kind == ".tsv") != (kind_of(files[0]) == ".tsv"):
            raise DataError(
                f"is no '{kind_of(files[0])}' file as {files[0].name} is",
                where=str(file),
                fix="Give files of one kind to one task.",
            )
        if file.stat().st_size == 0:
            raise DataError("the file is empty", where=str(file))
    reader = _READERS[kind_of(files[0])]
    options: dict[str, Any] = {}
    if reader == "csv":
        options = _table_options(files)
    elif reader == "parquet":
        options = {"batch_size": 10_000}  # by default that of the first row group, which may be 0
    return reader, {"data_files": [str(file) for file in files], **options}, "train"


def _table_options(files: Sequence[Path]) -> dict[str, Any]:
    """How CSV or TSV files are read: as text, since a guessed type would make 7 of 007 and nothing of None."""
    headers = [_header(file) for file in files]
    for file, header in zip(files, headers, strict=True):
        if not header:
            raise DataError("has no rows", where=str(file))
        if header != headers[0]:
            raise DataError(f"has other columns than {files[0].name}", where=str(file))
    text = Features({name: Value("string") for name in headers[0] if name})
    return {"delimiter": delimiter_of(files[0]), "features": text or None, "keep_default_na": False}


def _header(file: Path) -> list[str]:
    try:
        return header_of(file)
    except LineError as fault:
        raise DataError(fault.what, where=f"{file}:{fault.line}", fix="Mend or remove the line.") from fault


def _saved(source: SourceSettings) -> Dataset:
    """A dataset that `datasets` saved as one split."""
    rows = load_from_disk(source.path)
    if source.split not in (None, str(rows.split)):
        raise DataError(
            f"there is no split '{source.split}'; this saved dataset is one split by itself",
            where=source.path,
            fix="Leave `split` out, or name the folder of the other split.",
        )
    return rows if source.stream is None else rows.select(range(min(source.stream, len(rows))))


def _dataset_of(source: SourceSettings) -> str:
    path = Path(source.path)
    is_path = path.is_absolute() or kind_of(path) in _READERS or source.path.startswith((".", "~"))
    if not path.is_dir() and (is_path or not _HUB_ID.fullmatch(source.path)):
        raise DataError("there is no such file or folder", where=source.path)
    return source.path


def _unreadable(source: SourceSettings, error: Exception) -> DataError:
    path = Path(source.path)
    named = files_of(source.path)
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    if "corresponds to no data" in str(root):
        return DataError("has no rows", where=source.path)
    if not path.exists() and not named:
        return DataError(
            f"is no file or folder here, and cannot be had from the hub ({_reason(root)})",
            where=source.path,
            fix="Name a file, a folder or a hub dataset that this machine can reach, and a config and split it has.",
        )
    files = named or sorted(path.rglob("*"))
    for file in files:
        fault = first_fault(file)
        if fault is not None:
            return DataError(fault.what, where=f"{file}:{fault.line}", fix="Mend or remove the line.")
    if not any(kind_of(file) in _READERS for file in files):
        return DataError("the folder holds no rows", where=source.path, fix=_USE)
    fix = "Mend or replace it." if named else "Mend it, or name a config and split that it has."
    return DataError(f"cannot be read ({_reason(root)})", where=source.path, fix=fix)


def _reason(error: BaseException) -> str:
    if isinstance(error, ConnectionError):
        return "it cannot be reached"
    text = (str(error).strip().splitlines() or [""])[0]
    if type(error).__name__.startswith("Arrow") and "JSON" not in text:
        return "the data are damaged, or not what their name says"
    # Rows are counted within a block, which helps nobody find one.
    return re.sub(r" in row \d+$", "", text).rstrip(".") or type(error).__name__
