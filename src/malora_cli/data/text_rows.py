"""Rows of text files, and records inside rows: read once, kept in the cache, told of by file and line."""

from __future__ import annotations

import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from malora_cli.data.cache import cached, key_of
from malora_cli.data.cells import decoded
from malora_cli.data.csv_text import TABLES
from malora_cli.data.json_text import LineError, ShapeError
from malora_cli.data.records import records_of
from malora_cli.data.rows import File, Part, Places, Rows, joined, of_splits
from malora_cli.data.text_files import Lot, header_of, kind_of, lots_of, lots_of_rows
from malora_cli.data.typed import no_text
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings

#: Settings of a source that say how text files are written.
OF_TABLES = ("delimiter", "header", "quotes")
OF_TEXT = ("encoding", *OF_TABLES)
_LINES = "lines.arrow"
_LINE = pa.schema([("line", pa.int64())])
#: Bytes of files that are kept together in the cache, at most; a larger file is by itself.
_GROUP = 64 << 20
#: What reading a file that is damaged, compressed or out of reach ends in.
_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)


def text_rows(files: dict[str, list[Path]], source: SourceSettings, split: str) -> Rows:
    """Rows of some splits of text files, or of parts of splits.

    Args:
        files: The files of each split.
        source: What they are the files of.
        split: Which splits or parts of them.

    Raises:
        DataError: One cannot be read, or has no rows.
    """
    read = {name: _all_read(files[name], source) if name in split else [] for name in files}
    rows = of_splits(read, source, split)
    rows.dataset.set_transform(decoded)
    return rows


def _all_read(files: Sequence[Path], source: SourceSettings) -> list[Part]:
    """The rows of some files, no more than the source is to be read of."""
    if kind_of(files[0]) in TABLES:
        if source.records is not None:
            raise DataError("a table of texts has no records inside", where=str(files[0]), fix="Remove `records`.")
        _check_headers(files, source)
    else:
        refuse_settings(source, OF_TABLES, "CSV and TSV files")
    found: list[Part] = []
    left = source.stream
    for group in _groups(files):
        if left == 0:
            break
        read = _read_text(group, left, source)
        if read is not None:
            found.append(read)
            left = None if left is None else left - len(read[1])
    return found


def _groups(files: Sequence[Path]) -> Iterator[list[Path]]:
    """The files in their order; small ones together, since some data have a file for every row."""
    group, total = list[Path](), 0
    for file in files:
        size = file.stat().st_size
        if group and (total + size > _GROUP or kind_of(file) != kind_of(group[0])):
            yield group
            group, total = [], 0
        group.append(file)
        total += size
    yield group


def refuse_settings(source: SourceSettings, names: Sequence[str], files: str) -> None:
    """Refuse settings of a source that say how other files are written.

    Raises:
        DataError: One is set.
    """
    given = next((name for name in names if getattr(source, name) is not None), None)
    if given is not None:
        raise DataError(f"`{given}` is for {files}", where=source.path, fix=f"Remove `{given}`.")


def _read_text(files: Sequence[Path], limit: int | None, source: SourceSettings) -> Part | None:
    """The first rows of text files of one kind, kept in the cache; None where there are none."""
    # The name as it is given says how a file is read, also where it is a link.
    states = [file.stat() for file in files]
    known = [
        (str(file.resolve()), file.suffixes, state.st_size, state.st_mtime_ns)
        for file, state in zip(files, states, strict=True)
    ]
    key = key_of("text", known, limit, [getattr(source, name) for name in ("records", *OF_TEXT)])

    def fill(scratch: Path) -> dict[str, Any]:
        lots = [_checked(str(file), lots_of(file, source)) for file in files]
        return {"source": str(files[0]), **_copy(lots, scratch, limit, counted=kind_of(files[0]) == ".json")}

    return _copied(*cached(key, fill), [str(file) for file in files])


def _check_headers(files: Sequence[Path], source: SourceSettings) -> None:
    for file in files:
        if not _header(file, source):
            raise DataError("has no rows", where=str(file))


def _header(file: Path, source: SourceSettings) -> list[str]:
    try:
        return header_of(file, source)
    except LineError as fault:
        raise _fault(str(file), fault) from fault


def _fault(file: str, fault: LineError) -> DataError:
    return DataError(fault.what, where=f"{file}:{fault.line}", fix=fault.fix)


def _copy(files: Sequence[Iterable[Lot]], scratch: Path, limit: int | None, *, counted: bool = False) -> dict[str, Any]:
    """Write the first rows of some files as Arrow; where later rows have more columns, as several.

    Args:
        files: The lots of each: all rows, and the line of each.
        scratch: Where they go.
        limit: How many; None for all.
        counted: Whether lines are of no use where several rows share one.
    """
    count, last, names = 0, 0, list[str]()
    parts: list[dict[str, Any]] = [{"rows": 0, "columns": [], "shared": False} for _ in files]
    schema = pa.schema([])
    with ExitStack() as stack:
        lines = stack.enter_context(pa.ipc.new_stream(str(scratch / _LINES), _LINE))
        for part, (table, numbers) in ((part, lot) for part, lots in zip(parts, files, strict=True) for lot in lots):
            lot = table if limit is None else table.slice(0, limit - count)
            if not names or not set(lot.column_names) <= set(schema.names):
                schema = pa.unify_schemas([schema, lot.schema])
                names.append(f"rows-{len(names)}.arrow")
                writer = stack.enter_context(pa.ipc.new_stream(str(scratch / names[-1]), schema))
            writer.write_table(_with_columns(lot, schema))
            lines.write_table(pa.table([numbers[: len(lot)]], _LINE))
            again = part["rows"] > 0 and numbers[0] == last
            part["shared"] |= counted and (again or len(set(numbers)) < len(numbers))
            part["columns"] = list(dict.fromkeys([*part["columns"], *lot.column_names]))
            part["rows"] += len(lot)
            count, last = count + len(lot), numbers[-1]
            if count == limit:
                break
    return {"rows": count, "files": names, "parts": parts}


def _copied(folder: Path, about: dict[str, Any], names: Sequence[str]) -> Part | None:
    """What was written; None where there are no rows."""
    if not about["rows"]:
        return None
    rows = joined([Dataset.from_file(str(folder / file)) for file in about["files"]])
    lines = pa.ipc.open_stream(pa.memory_map(str(folder / _LINES))).read_all()["line"]
    files, begin = list[File](), 0
    for name, part in zip(names, about["parts"], strict=True):
        count, types = part["rows"], dict.fromkeys(part["columns"], "text")
        mine = None if part["shared"] else lines.slice(begin, count)
        begin += count
        if count:
            files.append(File(name, count, types, mine, unit="record" if part["shared"] else "row"))
    return files, rows


def _with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    known = set(table.column_names)
    columns = [table[field.name] if field.name in known else pa.nulls(len(table), field.type) for field in schema]
    return pa.table(columns, schema)


def _checked(file: str, lots: Iterator[Lot]) -> Iterator[Lot]:
    """Lots of a file, whose faults are told with its name."""
    try:
        yield from lots
    except LineError as fault:
        raise _fault(file, fault) from fault
    except ShapeError as shape:
        raise DataError(shape.what, where=file, fix=shape.fix) from shape
    except _UNREADABLE as error:
        raise DataError(f"cannot be read ({reason_of(error)})", where=file, fix="Mend or replace it.") from error


def records_in_rows(dataset: Dataset, source: SourceSettings) -> Rows:
    """The records inside the rows of a dataset that is not of text files.

    Raises:
        DataError: There are none, or a row has something else in their place.
    """
    records = records_of(source.records)
    texts = [name for name, feature in dataset.features.items() if no_text(feature) is None]
    rows = dataset.select_columns(texts)

    def fill(scratch: Path) -> dict[str, Any]:
        return {"source": source.path, **_copy([_checked(source.path, lots_of_rows(rows, records))], scratch, None)}

    read = _copied(*cached(key_of("records", dataset._fingerprint, records), fill), [source.path])
    if read is None:
        raise DataError("has no rows", where=source.path)
    read[1].set_transform(decoded)
    return Rows(read[1], source, Places(source.path, read[0]))


def reason_of(error: BaseException) -> str:
    """Why something cannot be read, in a few words."""
    if isinstance(error, ConnectionError):
        return "it cannot be reached"
    text = (str(error).strip().splitlines() or [""])[0]
    if type(error).__name__.startswith("Arrow") and "JSON" not in text:
        return "the data are damaged, or not what their name says"
    # Rows are counted within a block, which helps nobody find one.
    return re.sub(r" in row \d+$", "", text).rstrip(".") or type(error).__name__
