"""Rows of JSON, JSON lines, CSV and TSV files as columns of cells, and the line of the first thing that is wrong."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.json
from datasets import Dataset

from malora_cli.data.cells import Cells, column, column_of_texts, is_unicode
from malora_cli.data.csv_text import MOST_COLUMNS, TABLES, Table
from malora_cli.data.json_text import LineError, end_of, fault_of, object_at, past_space, value_at
from malora_cli.data.records import EVERY, Records, records_at, records_of, why_nothing
from malora_cli.data.shapes import shape_of
from malora_cli.recipe import SourceSettings

_OPENERS: dict[str, Callable[..., IO[bytes]]] = {
    ".gz": gzip.open,  # type: ignore[dict-item]
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path, _mode: pa.input_stream(str(path), compression="zstd"),
}
#: Suffixes of compressed files.
COMPRESSED = tuple(_OPENERS)
#: Suffixes of the files that are read here.
TEXT_KINDS = (".jsonl", ".json", *TABLES)
#: Characters of a lot of rows, and rows of one at most.
_LOT = 8 << 20
_LOT_ROWS = 10_000


T = TypeVar("T")
#: Columns of cells, and the line of the file that each row begins in, from 1.
Lot = tuple[pa.Table, Sequence[int]]


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, such as ``".csv"``; that of its compression is passed over."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def lots_of(path: Path, source: SourceSettings) -> Iterator[Lot]:
    """The rows of a file, a lot at a time.

    Args:
        path: The file.
        source: How it is written, and where the rows are in a JSON file that does not hold one behind another.

    Raises:
        LineError: A line is not what such a file holds.
        ShapeError: It holds something other than rows, or nothing where they should be.
    """
    records, encoding = records_of(source.records), source.encoding
    if kind_of(path) in TABLES:
        yield from _table_lots(path, source)
    elif not _is_in_lines(path, encoding, nested=bool(records)):
        text = _whole(path, encoding)
        yield from _lots(_records_of_whole(text, records) if records else _json_rows(text))
    elif records:
        yield from _lots(_records_of_lines(_lines(path, encoding), records))
    else:
        yield from _json_lines(path, encoding)


@contextmanager
def _opened(path: Path, encoding: str | None) -> Iterator[IO[str]]:
    """A file as text; any of the three ends of a line ends one, and stays."""
    open_file = _OPENERS.get(path.suffix.lower(), Path.open)
    codec = codecs.lookup(encoding or "utf-8").name
    try:
        with io.TextIOWrapper(open_file(path, "rb"), "utf-8-sig" if codec == "utf-8" else codec, newline="") as file:
            yield file
    except UnicodeError as error:  # that of a byte, or of a beginning
        with open_file(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if (start := _undecodable(line, codec)) is not None:
                    fix = "Save the file as UTF-8, or set its `encoding` in the source, such as latin-1."
                    raise LineError(number, f"is not {(encoding or codec).upper()} at byte {start + 1}", fix) from error


def _undecodable(line: bytes, codec: str) -> int | None:
    """Where a line has what its encoding does not know."""
    try:
        line.decode(codec)
    except UnicodeDecodeError as error:
        return error.start
    except UnicodeError:
        return 0
    return None


def _in_lots(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    lot: list[T] = []
    total = 0
    for item in items:
        lot.append(item)
        total += size(item)
        if total > _LOT or len(lot) == _LOT_ROWS:
            yield lot
            lot, total = [], 0
    if lot:
        yield lot


def _lots(rows: Iterable[tuple[int, Cells]]) -> Iterator[Lot]:
    for lot in _in_lots(rows, lambda row: len(row[1]) + sum(len(cell) for cell in row[1].values() if cell)):
        yield _lot(lot)


def _lot(rows: Sequence[tuple[int, Cells]]) -> Lot:
    columns: dict[str, list[str | None]] = {}
    for number, (line, cells) in enumerate(rows):
        for name, cell in cells.items():
            if name not in columns:
                if len(columns) == MOST_COLUMNS:
                    raise LineError(line, f"brings the columns to more than {MOST_COLUMNS:,}")
                if "\0" in name or not is_unicode(name):
                    raise LineError(line, f"has a name that is not text, {name!r}")
                columns[name] = [None] * len(rows)
            columns[name][number] = cell
    # A table of no column would have no rows.
    made = {name: column(cells) for name, cells in columns.items()} or {"": column([None] * len(rows))}
    return pa.table(made), [line for line, _ in rows]


# ---------------------------------------------------------------- CSV and TSV


def header_of(path: Path, source: SourceSettings) -> list[str]:
    """The names of the columns of a CSV or TSV file; none for an empty file.

    Raises:
        LineError: It is not valid CSV, or names a column twice.
    """
    with _opened(path, source.encoding) as file:
        return Table(file, kind_of(path), source).names


def _table_lots(path: Path, source: SourceSettings) -> Iterator[Lot]:
    with _opened(path, source.encoding) as file:
        table = Table(file, kind_of(path), source)
        width = len(table.names)
        # A column without a name is the index that a table was saved with.
        named = [number for number, name in enumerate(table.names) if name]
        for lot in _in_lots(table.rows(), size=lambda row: width + sum(map(len, row[1]))):
            columns = list(zip_longest(*(fields for _, fields in lot), [None] * width))
            yield (
                pa.table({table.names[number]: column_of_texts(columns[number][:-1]) for number in named}),
                [line for line, _ in lot],
            )


# ---------------------------------------------------------------- JSON


def _is_in_lines(path: Path, encoding: str | None, *, nested: bool) -> bool:
    """Whether a JSON file has a value in each line, whatever its name says.

    Raises:
        ShapeError: It has, and they are not rows.
    """
    by_name = kind_of(path) == ".jsonl"
    with _opened(path, encoding) as file:
        first, second = (next(filter(str.strip, file), "") for _ in range(2))
    try:
        value, end = value_at(first, past_space(first, 0))
    except (ValueError, RecursionError):  # a line that is wrong, or the beginning of a value of several lines
        return by_name and first.strip() not in ("[", "{", "[{")
    complete = past_space(first, end) == len(first)
    if isinstance(value, list) and not second:  # an array on one line, whatever the name says
        return False
    if not by_name:
        return bool(second) and isinstance(value, dict) and complete
    if not nested and not isinstance(value, dict) and complete:
        raise shape_of(value, of="each line")
    return True


def _json_rows(text: str) -> Iterator[tuple[int, Cells]]:
    """The objects of a file, in an array or one after another."""
    at = counted = past_space(text, 0)
    line = 1 + text.count("\n", 0, at)
    in_array = text[at : at + 1] == "["
    _check_shape(text, at)
    at = past_space(text, at + in_array)
    more = at < len(text) and not (in_array and text[at] == "]")
    while more:
        line, counted = line + text.count("\n", counted, at), at
        try:
            cells, at = object_at(text, at)
            more = text[at : at + 1] == "," if in_array else at < len(text)
            if in_array and not more and text[at : at + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        except (ValueError, RecursionError) as error:
            raise fault_of(error, line if isinstance(error, RecursionError) else 1) from None
        yield line, cells
        at = past_space(text, at + (in_array and more))
    if in_array and past_space(text, at + 1) < len(text):
        raise fault_of(json.JSONDecodeError("Extra data", text, past_space(text, at + 1)), 1)


def _lines(path: Path, encoding: str | None) -> Iterator[str]:
    with _opened(path, encoding) as file:
        yield from file


def _whole(path: Path, encoding: str | None) -> str:
    with _opened(path, encoding) as file:
        return file.read()


def _check_shape(text: str, at: int) -> None:
    """Refuse JSON that is neither a list of objects nor objects one after another.

    Raises:
        ShapeError: It is valid and something else, such as one object with the rows in a list.
    """
    begin = text[at : at + 1]
    if begin == "[" and text[(second := past_space(text, at + 1)) : second + 1] in ("{", "]", ""):
        return
    try:
        if past_space(text, end_of(text, at, levels=2)) < len(text):
            return
        value, _ = value_at(text, at)
    except (ValueError, RecursionError):  # whoever reads it says where
        return
    if not isinstance(value, dict) or any(isinstance(inner, list | dict) for inner in value.values()):
        raise shape_of(value)


def _written(value: Any) -> str:
    """What is no JSON, such as a date."""
    if isinstance(value, bytes):
        raise TypeError("bytes that are not text")
    return str(value)


def lots_of_rows(rows: Dataset, records: Sequence[Records]) -> Iterator[Lot]:
    """The records in the rows of a dataset, with the number of each row as its line.

    Raises:
        LineError: A row has something else where the records should be.
        ShapeError: There are none.
    """
    return _lots(_records_of_lines((json.dumps(row, default=_written) for row in rows), records))


def _records_of_lines(lines: Iterable[str], records: Sequence[Records]) -> Iterator[tuple[int, Cells]]:
    """The records in values that each have a line."""
    paths, first, found = [_in_each(record) for record in records], "", False
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        first = first or line
        try:
            at, *more = _values(line)
            if more:
                raise json.JSONDecodeError("Extra data", line, more[0])
            for _, cells in records_at(line, at, paths, in_item=True):
                found = True
                yield number, cells
        except (ValueError, RecursionError) as error:
            raise fault_of(error, number) from None
    if first and not found:
        raise why_nothing(first, past_space(first, 0), paths[0])


def _records_of_whole(text: str, records: Sequence[Records]) -> Iterator[tuple[int, Cells]]:
    """The records in what a file holds: most often one value."""
    line, counted, found = 1, 0, False
    try:
        starts = _values(text)
        several = len(starts) > 1
        paths = [_in_each(record) for record in records] if several else records
        for start in starts:
            for at, cells in records_at(text, start, paths, in_item=several):
                line, counted, found = line + text.count("\n", counted, at), at, True
                yield line, cells
    except (ValueError, RecursionError) as error:
        raise fault_of(error, line if isinstance(error, RecursionError) else 1) from None
    if starts and not found:
        raise why_nothing(text, starts[0], paths[0])


def _in_each(record: Records) -> Records:
    """A path into a list of values as one into each of them."""
    return record[1:] if record[0] == EVERY else record


def _values(text: str) -> list[int]:
    """Where each of the values begins that stand one after another."""
    starts, at = list[int](), past_space(text, 0)
    while at < len(text):
        starts.append(at)
        at = past_space(text, end_of(text, at, levels=2))
    return starts


def _json_lines(path: Path, encoding: str | None) -> Iterator[Lot]:
    """Lots of rows of a file that has one in a line: by the reader of Arrow where all values of a lot are texts."""
    first, names = 1, list[str]()
    with _opened(path, encoding) as file:
        while lines := file.readlines(_LOT):
            quick = _read_by_arrow(lines, first, names)
            for table, numbers in _lots(_parsed(lines, first)) if quick is None else [quick]:
                yield table, numbers
                names = table.column_names
            first += len(lines)


def _parsed(lines: list[str], first: int) -> Iterator[tuple[int, Cells]]:
    for number, whole in enumerate(lines, start=first):
        line = whole.rstrip("\r\n")
        start = past_space(line, 0)
        if start == len(line):
            continue
        try:
            cells, at = object_at(line, start)
            if at < len(line):
                raise json.JSONDecodeError("Extra data", line, at)
        except (ValueError, RecursionError) as error:
            raise fault_of(error, number) from None
        yield number, cells


def _read_by_arrow(lines: list[str], first: int, names: list[str]) -> Lot | None:
    """A lot of rows of nothing but texts in known columns; None for any other, which has to be gone through slowly."""
    text = "".join(lines)
    if not names or "\\u0000" in text:
        return None
    data = text.encode()
    schema = pa.schema([(name, pa.string()) for name in names])
    try:
        table = pa.json.read_json(
            io.BytesIO(data),
            pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
        )
    except pa.ArrowException:
        return None
    return (table, range(first, first + len(lines))) if len(table) == len(lines) else None
