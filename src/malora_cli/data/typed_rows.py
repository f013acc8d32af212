"""Rows of Parquet and Arrow files; where several differ, the columns in which they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetBuilder, Features, Value
from datasets.packaged_modules.arrow.arrow import Arrow
from datasets.packaged_modules.parquet.parquet import Parquet

from malora_cli.data.cache import cached, key_of
from malora_cli.data.rows import File, Part, Rows, of_splits
from malora_cli.data.text_files import kind_of
from malora_cli.data.text_rows import reason_of
from malora_cli.data.typed import as_people_write
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings

_LOT = 10_000
_STREAMED = "rows.arrow"
_SHOWN = 80


@dataclass(frozen=True)
class _Known:
    """What a file says of its rows."""

    path: Path
    rows: int
    features: Features


def typed_rows(files: Mapping[str, Sequence[Path]], source: SourceSettings, split: str) -> Rows:
    """Rows of some splits of Parquet or Arrow files, or of parts of splits.

    Args:
        files: The files of each split.
        source: What they are the files of.
        split: Which splits or parts of them.

    Raises:
        DataError: One cannot be read, or there are no rows.
    """
    known = {name: [_known(path) for path in paths] if name in split else [] for name, paths in files.items()}
    every = [file for found in known.values() for file in found]
    alike = all(file.features == every[0].features for file in every)
    agreed = None if alike else _agreed([file.features for file in every])
    read = {name: _all_read(found, agreed, source.stream) for name, found in known.items()}
    rows = of_splits(read, source, split)
    return replace(rows, dataset=as_people_write(rows.dataset))


def _known(path: Path) -> _Known:
    try:
        if kind_of(path) == ".parquet":
            with pq.ParquetFile(path) as parquet:
                return _Known(path, parquet.metadata.num_rows, Features.from_arrow_schema(parquet.schema_arrow))
        with pa.memory_map(str(path)) as mapped:
            try:
                batches = pa.ipc.open_stream(mapped)
                rows = sum(batch.num_rows for batch in batches)
            except pa.ArrowInvalid:
                batches = pa.ipc.open_file(mapped)
                rows = sum(batches.get_batch(number).num_rows for number in range(batches.num_record_batches))
            return _Known(path, rows, Features.from_arrow_schema(batches.schema))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot be read ({reason_of(error)})", where=str(path), fix="Mend or replace it.") from error


def _agreed(found: Sequence[Features]) -> Features:
    """The columns of some files that are of one type wherever they are, or of types that one other holds."""
    names = dict.fromkeys(name for features in found for name in features)
    common = {name: _common([features[name] for features in found if name in features]) for name in names}
    return Features({name: feature for name, feature in common.items() if feature is not None})


def _common(features: Sequence[Any]) -> Any:
    if all(feature == features[0] for feature in features):
        return features[0]
    schemas = [pa.schema([Features({"": feature}).arrow_schema.field(0)]) for feature in features]
    try:
        [plain] = Features.from_arrow_schema(pa.unify_schemas(schemas, promote_options="permissive")).values()
    except pa.ArrowException:
        return None
    # Names of classes and pictures are more than their types, and would be lost.
    own = [Features.from_arrow_schema(schema)[""] == feature for schema, feature in zip(schemas, features, strict=True)]
    return plain if all(own) else None


def _all_read(files: Sequence[_Known], agreed: Features | None, limit: int | None) -> list[Part]:
    """The rows of some files, no more than so many: of all at once, or of each where not all are alike."""
    found: list[Part] = []
    for group in [files] if agreed is None else [[file] for file in files]:
        if not group or limit == 0:
            continue
        rows = _rows_of([file.path for file in group], limit)
        if agreed is not None:
            mine = Features({name: feature for name, feature in agreed.items() if name in rows.features})
            rows = rows.select_columns(list(mine))
            rows = rows if rows.features == mine else rows.cast(mine)
        limit = None if limit is None else limit - len(rows)
        found.append(([_file(file) for file in group], rows))
    return found


def _file(file: _Known) -> File:
    return File(str(file.path), file.rows, {name: _told(feature) for name, feature in file.features.items()})


def _told(feature: Any) -> str:
    """A type, for messages."""
    return shorten(feature.dtype if isinstance(feature, Value) else str(feature), _SHOWN)


def _rows_of(paths: Sequence[Path], limit: int | None) -> Dataset:
    files = {"train": [str(path) for path in paths]}
    # The batch size is by default that of the first row group, which may be 0.
    parquet = kind_of(paths[0]) == ".parquet"
    return built(Parquet(data_files=files, batch_size=_LOT) if parquet else Arrow(data_files=files), "train", limit)


def built(builder: DatasetBuilder, split: str, limit: int | None) -> Dataset:
    """The first rows that a builder of `datasets` reads, or all of them."""
    if limit is None:
        builder.download_and_prepare()
        return builder.as_dataset(split)
    # The folder it would keep its rows in is named after all that decides them, a revision or a file's time included.
    key = key_of("stream", builder.cache_dir, split, limit)
    folder, _ = cached(key, lambda scratch: _stream(builder, split, limit, scratch))
    return Dataset.from_file(str(folder / _STREAMED))


def _stream(builder: DatasetBuilder, split: str, limit: int, scratch: Path) -> dict[str, Any]:
    """Write the first rows of a source, a lot at a time."""
    rows = builder.as_streaming_dataset(split=split).take(limit).with_format("arrow").iter(_LOT)
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
        raise DataError("has no rows", where=str(builder.dataset_name))
    return {"source": str(builder.dataset_name), "rows": count}
