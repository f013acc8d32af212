"""Rows of JSON, JSON lines, CSV and TSV files as columns of cells, and the line of the first thing that is wrong."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.json

from malora_cli.data.cells import Cells, column, column_of_texts, is_unicode, of_json

_OPENERS: dict[str, Callable[..., IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # type: ignore[dict-item]
#: Suffixes of compressed files.
COMPRESSED = tuple(_OPENERS)
#: Suffixes of the files that are read here.
TEXT_KINDS = (".jsonl", ".json", ".csv", ".tsv")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_COLUMNS = 10_000
#: Characters of a lot of rows, and rows of one at most.
_LOT = 8 << 20
_LOT_ROWS = 10_000


T = TypeVar("T")
#: Columns of cells, and the line of the file that each row begins in, from 1.
Lot = tuple[pa.Table, Sequence[int]]


class LineError(Exception):
    """Something wrong in a file.

    Args:
        line: Its line, from 1.
        what: What is wrong with it, to stand behind the line.
    """

    def __init__(self, line: int, what: str) -> None:
        self.line, self.what = line, what
        super().__init__(f"line {line} {what}")


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, such as ``".csv"``; that of its compression is passed over."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def lots_of(path: Path) -> Iterator[Lot]:
    """The rows of a file, a lot at a time.

    Raises:
        LineError: A line is not what such a file holds.
    """
    kind = kind_of(path)
    if kind in _DELIMITERS:
        return _table_lots(path)
    if kind == ".jsonl" or _begins_with_an_object(path):
        return _json_lines(path)
    return _lots(_json_rows(path))


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """A file as text; any of the three ends of a line ends one, and stays."""
    open_file = _OPENERS.get(path.suffix.lower(), Path.open)
    try:
        with io.TextIOWrapper(open_file(path, "rb"), "utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        with open_file(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if (start := _not_utf8(line)) is not None:
                    raise LineError(number, f"is not UTF-8 at byte {start + 1}") from error


def _not_utf8(line: bytes) -> int | None:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
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
                if len(columns) == _COLUMNS:
                    raise LineError(line, f"brings the columns to more than {_COLUMNS:,}")
                if "\0" in name or not is_unicode(name):
                    raise LineError(line, f"has a name that is no text, {name!r}")
                columns[name] = [None] * len(rows)
            columns[name][number] = cell
    # A table of no column would have no rows.
    made = {name: column(cells) for name, cells in columns.items()} or {"": column([None] * len(rows))}
    return pa.table(made), [line for line, _ in rows]


# ---------------------------------------------------------------- CSV and TSV


def header_of(path: Path) -> list[str]:
    """The names in the first line of a CSV or TSV file that is not empty; none for an empty file.

    Raises:
        LineError: It is not valid CSV, or names a column twice.
    """
    with _opened(path) as file:
        return _header(_records(path, file))[1]


def _records(path: Path, file: IO[str]) -> Iterator[tuple[int, list[str]]]:
    """The records that are not empty, each with the line it begins in."""
    csv.field_size_limit(2**31 - 1)  # the module's, for all of the process; by default long texts are refused
    reader = csv.reader(file, delimiter=_DELIMITERS[kind_of(path)], strict=True)
    begins = 1
    try:
        for record in reader:
            if record:
                yield begins, record
            begins = reader.line_num + 1
    except csv.Error as error:
        raise LineError(begins, f"is not valid CSV ({error})") from None


def _header(records: Iterator[tuple[int, list[str]]]) -> tuple[int, list[str]]:
    line, header = next(records, (1, []))
    if len(header) > _COLUMNS:
        raise LineError(line, f"names {len(header):,} columns, more than {_COLUMNS:,}")
    twice = next((name for name, count in Counter(header).items() if name and count > 1), None)
    if twice is not None:
        raise LineError(line, f"names the column '{twice}' twice")
    return line, header


def _table_lots(path: Path) -> Iterator[Lot]:
    with _opened(path) as file:
        records = _records(path, file)
        _, header = _header(records)
        # A column without a name is the index that a table was saved with.
        named = [number for number, name in enumerate(header) if name]
        for lot in _in_lots(records, size=lambda record: len(header) + sum(map(len, record[1]))):
            rows = [record for _, record in lot]
            for line, record in lot:
                if len(record) > len(header):
                    raise LineError(line, f"has {len(record):,} fields, and the header has {len(header):,}")
            columns = list(zip_longest(*rows, [None] * len(header)))
            yield (
                pa.table({header[number]: column_of_texts(columns[number][:-1]) for number in named}),
                [line for line, _ in lot],
            )


# ---------------------------------------------------------------- JSON

# Only the kind of a value is of interest when a file is read, and int() refuses thousands of digits.
_value_at: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder(parse_int=float).scan_once  # type: ignore[attr-defined]
_past_space = re.compile(r"[ \t\r\n]*").match
_colon = re.compile(r"[ \t\r\n]*:[ \t\r\n]*").match
_separator = re.compile(r"[ \t\r\n]*([,}])[ \t\r\n]*").match


def _past(text: str, at: int) -> int:
    found = _past_space(text, at)
    assert found is not None  # it matches nothing as well
    return found.end()


def _object_at(text: str, at: int) -> tuple[Cells, int]:
    """The cells of a JSON object, and where what follows on it begins.

    Raises:
        ValueError: There is none, in words that stand behind its line; `json.JSONDecodeError` where it is not JSON.
        RecursionError: It is nested too deeply.
    """
    try:
        if text[at : at + 1] != "{":
            _value_at(text, at)  # which says where it is not JSON
            raise ValueError("is not a JSON object")
        return _members_at(text, _past(text, at + 1))
    except StopIteration as stop:
        raise json.JSONDecodeError("Expecting value", text, stop.value) from None


def _members_at(text: str, at: int) -> tuple[Cells, int]:
    cells: Cells = {}
    if text[at : at + 1] == "}":
        return cells, _past(text, at + 1)
    while True:
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        name, at = _value_at(text, at)
        if name in cells:
            raise ValueError(f"names '{name}' twice")
        colon = _colon(text, at)
        if colon is None:
            raise json.JSONDecodeError("Expecting ':' delimiter", text, _past(text, at))
        start = colon.end()
        value, at = _value_at(text, start)
        cells[name] = of_json(value, text[start:at])
        separator = _separator(text, at)
        if separator is None:
            raise json.JSONDecodeError("Expecting ',' delimiter", text, _past(text, at))
        at = separator.end()
        if separator[1] == "}":
            return cells, at


def _fault(error: Exception, line: int) -> LineError:
    if isinstance(error, json.JSONDecodeError):
        what = f"is not valid JSON ({error.msg.removesuffix(' at')} at column {error.colno})"
        return LineError(line + error.lineno - 1, what)
    return LineError(line, "is nested too deeply" if isinstance(error, RecursionError) else str(error))


def _begins_with_an_object(path: Path) -> bool:
    """Whether a file is JSON lines, whatever its name says."""
    with _opened(path) as file:
        line = next(filter(str.strip, file), "")
    start = _past(line, 0)
    if line[start : start + 1] != "{":  # an array on one line may be all of a large file
        return False
    try:
        return _object_at(line, start)[1] == len(line)
    except (ValueError, RecursionError):
        return False


def _json_rows(path: Path) -> Iterator[tuple[int, Cells]]:
    """The objects of a file, in an array or one after another."""
    with _opened(path) as file:
        text = file.read()
    at = counted = _past(text, 0)
    line = 1 + text.count("\n", 0, at)
    in_array = text[at : at + 1] == "["
    at = _past(text, at + in_array)
    more = at < len(text) and not (in_array and text[at] == "]")
    while more:
        line, counted = line + text.count("\n", counted, at), at
        try:
            cells, at = _object_at(text, at)
            more = text[at : at + 1] == "," if in_array else at < len(text)
            if in_array and not more and text[at : at + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        except (ValueError, RecursionError) as error:
            raise _fault(error, 1 if isinstance(error, json.JSONDecodeError) else line) from None
        yield line, cells
        at = _past(text, at + (in_array and more))
    if in_array and _past(text, at + 1) < len(text):
        raise _fault(json.JSONDecodeError("Extra data", text, _past(text, at + 1)), 1)


def _json_lines(path: Path) -> Iterator[Lot]:
    """Lots of rows of a file that has one in a line: by the reader of Arrow where all values of a lot are texts."""
    first, names = 1, list[str]()
    with _opened(path) as file:
        while lines := file.readlines(_LOT):
            quick = _read_by_arrow(lines, first, names)
            for table, numbers in _lots(_parsed(lines, first)) if quick is None else [quick]:
                yield table, numbers
                names = table.column_names
            first += len(lines)


def _parsed(lines: list[str], first: int) -> Iterator[tuple[int, Cells]]:
    for number, whole in enumerate(lines, start=first):
        line = whole.rstrip("\r\n")
        start = _past(line, 0)
        if start == len(line):
            continue
        try:
            cells, at = _object_at(line, start)
            if at < len(line):
                raise json.JSONDecodeError("Extra data", line, at)
        except (ValueError, RecursionError) as error:
            raise _fault(error, number) from None
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
