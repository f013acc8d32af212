"""Rows from a file, a folder or a hub dataset; every way they can be wrong in one line.

Text files are read here, all others through `datasets`. Nothing that lies on this machine is asked for elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import (
    BuilderConfig,
    Dataset,
    DatasetBuilder,
    DownloadManager,
    load_dataset_builder,
    load_from_disk,
)
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from datasets.packaged_modules.arrow.arrow import Arrow
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet

from malora_cli.data.cache import cached, key_of
from malora_cli.data.rows import Places, Rows
from malora_cli.data.text_files import COMPRESSED, TEXT_KINDS, kind_of
from malora_cli.data.text_rows import reason_of, records_in_rows, text_rows
from malora_cli.data.typed import as_people_write
from malora_cli.data.variables import error_as_given, rows_as_given, with_values
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings

_KINDS = (*TEXT_KINDS, ".parquet", ".arrow")
_USE = f"Use one of {', '.join(_KINDS)}, as it is or compressed ({', '.join(COMPRESSED)})."
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
#: How `datasets` ends where a config has to be chosen.
_CONFIGS = re.compile(r"[Aa]vailable(?: configs)?: \[(.*)\]")
_LOT = 10_000
_STREAMED = "rows.arrow"
#: What the config of a dataset says beside how its files are read.
_WHERE = ("name", "version", "data_dir", "data_files", "description")


def load_rows(source: SourceSettings, *, split: str) -> Rows:
    """The rows of one split of a task.

    Args:
        source: Where they are.
        split: Split to take of a folder or hub dataset when the source names none.

    Raises:
        DataError: Nothing is there, it cannot be read, or it has no rows.
    """
    found = with_values(source)
    try:
        return rows_as_given(_some_rows(found, found.split or split), source)
    except DataError as error:
        raise error_as_given(error, source) from error


def _some_rows(source: SourceSettings, split: str) -> Rows:
    try:
        rows = _read(source, split)
    except DataError:
        raise
    except Exception as error:  # readers of many formats, compressions and stores raise anything
        raise _unreadable(source, error) from error
    if len(rows.dataset) == 0:
        raise DataError("has no rows", where=source.path)
    return rows


def _read(source: SourceSettings, split: str) -> Rows:
    files = files_of(source.path)
    if files:
        _check_files(files)
        if kind_of(files[0]) in TEXT_KINDS:
            return text_rows({"train": files}, source, "train")
        paths = {"train": [str(file) for file in files]}
        # The batch size is by default that of the first row group, which may be 0.
        parquet = kind_of(files[0]) == ".parquet"
        builder = Parquet(data_files=paths, batch_size=_LOT) if parquet else Arrow(data_files=paths)
        return _typed_rows(builder, source, "train")
    if (Path(source.path) / "state.json").is_file():
        return _saved(source)
    builder = load_dataset_builder(_dataset_of(source), name=source.config, revision=source.revision)
    texts = _text_files_of(builder, source)
    return _typed_rows(builder, source, split) if texts is None else text_rows(texts, source, split)


def files_of(path: str) -> list[Path]:
    """The file of a path, or the files of a pattern in the order of their names; none for anything else.

    Raises:
        DataError: No file has a name like the pattern, or the path cannot be followed.
    """
    try:
        if Path(path).is_file():
            return [Path(path)]
        if not has_magic(path) or Path(path).is_dir():
            Path(path).exists()
            return []
        named = glob(path, recursive=True)  # noqa: PTH207 - the pattern holds its folder
        found = sorted(Path(name) for name in named if Path(name).is_file())
    except OSError as error:
        raise DataError(f"cannot be looked up ({error.strerror})", where=path) from error
    if not found:
        raise DataError("no file has a name like this", where=path)
    return found


def _check_files(files: Sequence[Path]) -> None:
    """Refuse files that cannot be read as rows of one kind."""
    for file in files:
        kind, first = kind_of(file), kind_of(files[0])
        if kind not in _KINDS:
            raise DataError(
                f"rows cannot be read from '{kind}' files"
                if kind
                else "the file has no suffix that says what it holds",
                where=str(file),
                fix=_USE,
            )
        if kind != first and {kind, first} != {".json", ".jsonl"}:
            raise DataError(
                f"is no '{first}' file as {files[0].name} is",
                where=str(file),
                fix="Give files of one kind to one task.",
            )
        if file.stat().st_size == 0:
            raise DataError("the file is empty", where=str(file))


# ---------------------------------------------------------------- text files


def _text_files_of(builder: DatasetBuilder, source: SourceSettings) -> dict[str, list[Path]] | None:
    """The files of each split of a folder or hub dataset; None where these are not for us to read."""
    if not isinstance(builder, Csv | Json) or builder.info.features is not None:
        return None
    named = {str(split): [str(file) for file in files] for split, files in builder.config.data_files.items()}
    if any("://" in name for names in named.values() for name in names):
        if source.stream is not None:  # a part of a file is to be fetched, and datasets can do that
            return None
        named = DownloadManager().download(named)
    files = {split: [Path(name) for name in names] for split, names in named.items()}
    kinds = {kind_of(file) for found in files.values() for file in found}
    return files if kinds <= set(TEXT_KINDS) and _as_usual(builder.config, kinds) else None


def _as_usual(config: BuilderConfig, kinds: set[str]) -> bool:
    """Whether a dataset's card says nothing of how its files are read."""
    usual = replace(type(config)(), **{name: getattr(config, name) for name in _WHERE})
    return config == usual or (kinds == {".tsv"} and config == replace(usual, sep="\t"))


# ---------------------------------------------------------------- what datasets reads


def _typed_rows(builder: DatasetBuilder, source: SourceSettings, split: str) -> Rows:
    if source.stream is None:
        builder.download_and_prepare()
        return _rows_of(builder.as_dataset(split), source)
    # The folder it would keep its rows in is named after all that decides them, a revision or a file's time included.
    key = key_of("stream", builder.cache_dir, split, source.stream)
    folder, _ = cached(key, lambda scratch: _stream(builder, split, source, scratch))
    return _rows_of(Dataset.from_file(str(folder / _STREAMED)), source)


def _rows_of(dataset: Dataset, source: SourceSettings) -> Rows:
    rows = as_people_write(dataset)
    return Rows(rows, source, Places(source.path)) if source.records is None else records_in_rows(rows, source)


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


def _saved(source: SourceSettings) -> Rows:
    """A dataset that `datasets` saved as one split."""
    rows = load_from_disk(source.path)
    if source.split not in (None, str(rows.split)):
        raise DataError(
            f"there is no split '{source.split}'; this saved dataset is one split by itself",
            where=source.path,
            fix="Leave `split` out, or name the folder of the other split.",
        )
    return _rows_of(rows if source.stream is None else rows.select(range(min(source.stream, len(rows)))), source)


def _dataset_of(source: SourceSettings) -> str:
    """A folder or the id of a hub dataset."""
    path = Path(source.path)
    if path.is_dir():
        if path.resolve() == path.resolve().parent:
            raise DataError(
                "is the root of the file system, not a dataset", where=source.path, fix="Name a folder in it."
            )
        return str(path.absolute())  # a bare name could also be that of a reader
    if source.path in _PACKAGED_DATASETS_MODULES:
        raise DataError(
            "is the name of a reader of `datasets`, and neither a file or folder here nor a hub dataset",
            where=source.path,
            fix="Name a file, a folder or a hub dataset as OWNER/NAME.",
        )
    is_path = path.is_absolute() or kind_of(path) in _KINDS or source.path.startswith((".", "~"))
    if is_path or not _HUB_ID.fullmatch(source.path):
        raise DataError("there is no such file or folder", where=source.path)
    return source.path


def _unreadable(source: SourceSettings, error: Exception) -> DataError:
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    if "corresponds to no data" in str(root):
        return DataError("has no rows", where=source.path)
    configs = _CONFIGS.search(str(root))
    if configs:
        what = f"has no config '{source.config}'" if source.config else "has several configs, and none is named"
        return DataError(
            f"{what}; it has {configs[1].replace(chr(39), '')}",
            where=source.path,
            fix="Name one, as in `train: {path: PATH, config: NAME}`.",
        )
    path, named = Path(source.path), files_of(source.path)
    if not path.exists() and not named:
        return DataError(
            f"is no file or folder here, and cannot be had from the hub ({reason_of(root)})",
            where=source.path,
            fix="Name a file, a folder or a hub dataset that this machine can reach, and a config and split it has.",
        )
    if not named and not any(kind_of(file) in _KINDS for file in path.rglob("*")):
        return DataError("the folder holds no rows", where=source.path, fix=_USE)
    fix = "Mend or replace it." if named else "Mend it, or name a config and split that it has."
    return DataError(f"cannot be read ({reason_of(root)})", where=source.path, fix=fix)
