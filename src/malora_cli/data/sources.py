"""Rows from a file, a folder or a hub dataset; every way they can be wrong in one line.

Text files are read here, all others through `datasets`. Nothing that lies on this machine is asked for elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from glob import glob, has_magic
from pathlib import Path

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

from malora_cli.data.rows import Places, Rows
from malora_cli.data.text_files import COMPRESSED, TEXT_KINDS, kind_of
from malora_cli.data.text_rows import OF_TEXT, reason_of, records_in_rows, refuse_settings, text_rows
from malora_cli.data.typed import as_people_write
from malora_cli.data.typed_rows import built, typed_rows
from malora_cli.data.variables import error_as_given, rows_as_given, with_values
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings

_KINDS = (*TEXT_KINDS, ".parquet", ".arrow")
_USE = f"Use one of {', '.join(_KINDS)}, as it is or compressed ({', '.join(COMPRESSED)})."
#: What to do where a config has to be chosen, in a mix.
NAME_CONFIG = "Name one, as in `train: {path: PATH, config: NAME}`."
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
#: How `datasets` ends where a config has to be chosen.
_CONFIGS = re.compile(r"[Aa]vailable(?: configs)?: \[(.*)\]")
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


def splits_of(source: SourceSettings) -> list[str]:
    """The splits of a folder or hub dataset by name; none of files and of a dataset that was saved, which are one.

    Raises:
        DataError: It cannot be reached.
    """
    found = with_values(source)
    if files_of(found.path) or (Path(found.path) / "state.json").is_file():
        return []
    try:
        builder = _builder_of(found)
    except Exception as error:  # as for its rows
        raise error_as_given(_unreadable(found, error), source) from error
    return [*map(str, builder.config.data_files or builder.info.splits or ())]


def _read(source: SourceSettings, split: str) -> Rows:
    files = files_of(source.path)
    if files:
        _check_files(files)
        if kind_of(files[0]) in TEXT_KINDS:
            return text_rows({"train": files}, source, "train")
        return _typed(typed_rows({"train": files}, source, "train"))
    if (Path(source.path) / "state.json").is_file():
        return _typed(_saved(source))
    builder = _builder_of(source)
    local = _files_of_splits(builder, source)
    kinds = {kind_of(file) for files in local.values() for file in files}
    if kinds & set(TEXT_KINDS):
        return text_rows(local, source, split)
    if local:
        return _typed(typed_rows(local, source, split))
    return _typed(_rows_of(built(builder, split, source.stream), source))


def _typed(rows: Rows) -> Rows:
    """Rows that are not of text files, or the records inside them."""
    refuse_settings(rows.settings, OF_TEXT, "text files")
    return rows if rows.settings.records is None else records_in_rows(rows.dataset, rows.settings)


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
        raise DataError("no file matches this pattern", where=path)
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
                f"is not a '{first}' file as {files[0].name} is",
                where=str(file),
                fix="Give files of one kind to one task.",
            )
        if file.stat().st_size == 0:
            raise DataError("the file is empty", where=str(file))


# ---------------------------------------------------------------- folders and hub datasets


def _builder_of(source: SourceSettings) -> DatasetBuilder:
    return load_dataset_builder(_dataset_of(source), name=source.config, revision=source.revision)


def _files_of_splits(builder: DatasetBuilder, source: SourceSettings) -> dict[str, list[Path]]:
    """The files of each split of a folder or hub dataset; none where they are not for us to read."""
    if not isinstance(builder, Csv | Json | Parquet | Arrow) or builder.info.features is not None:
        return {}
    named = {str(split): [str(file) for file in files] for split, files in builder.config.data_files.items()}
    if any("://" in name for names in named.values() for name in names):
        # A part of a file is to be fetched, or what `datasets` can read without copies; both are its business.
        if source.stream is not None or isinstance(builder, Parquet | Arrow):
            return {}
        named = DownloadManager().download(named)
    files = {split: [Path(name) for name in names] for split, names in named.items()}
    kinds = {kind_of(file) for found in files.values() for file in found}
    known = set(TEXT_KINDS) if isinstance(builder, Csv | Json) else {".parquet", ".arrow"}
    return files if kinds <= known and _as_usual(builder.config, kinds) else {}


def _as_usual(config: BuilderConfig, kinds: set[str]) -> bool:
    """Whether a dataset's card says nothing of how its files are read."""
    usual = replace(type(config)(), **{name: getattr(config, name) for name in _WHERE})
    return config == usual or (kinds == {".tsv"} and config == replace(usual, sep="\t"))


def _rows_of(dataset: Dataset, source: SourceSettings) -> Rows:
    return Rows(as_people_write(dataset), source, Places(source.path))


def _saved(source: SourceSettings) -> Rows:
    """A dataset that `datasets` saved as one split."""
    rows = load_from_disk(source.path)
    if source.split not in (None, str(rows.split)):
        raise DataError(
            f"split '{source.split}' not found: this saved dataset is a single split",
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
        fix = None if path.is_absolute() else "Paths are relative to the file that names them."
        raise DataError("file or folder not found", where=source.path, fix=fix)
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
            fix=NAME_CONFIG,
        )
    path, named = Path(source.path), files_of(source.path)
    if not path.exists() and not named:
        return DataError(
            f"not found as a file or folder, and cannot be loaded from the hub ({reason_of(root)})",
            where=source.path,
            fix="Name a file, a folder or a hub dataset, with a config and split it has.",
        )
    if not named and not any(kind_of(file) in _KINDS for file in path.rglob("*")):
        return DataError("the folder holds no rows", where=source.path, fix=_USE)
    fix = "Mend or replace it." if named else "Mend it, or name a config and split that it has."
    return DataError(f"cannot be read ({reason_of(root)})", where=source.path, fix=fix)
