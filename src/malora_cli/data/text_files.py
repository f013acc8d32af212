"""Text files of rows: which there are, how they are opened, and the line of the first thing that is wrong in one.

The readers of `datasets` are fast but say little of where a file is wrong. A file they refuse is gone through again
here, line by line, which costs nothing while all is well.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

_OPENERS: dict[str, Callable[..., IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # type: ignore[dict-item]
#: Suffixes of compressed files.
COMPRESSED = tuple(_OPENERS)
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


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


def first_fault(path: Path) -> LineError | None:
    """The first fault of a text file; None where there is none, or where it is no text file of rows."""
    check = {".jsonl": _check_json_lines, ".json": _check_json, ".csv": _check_table, ".tsv": _check_table}
    try:
        check.get(kind_of(path), lambda _: None)(path)
    except LineError as fault:
        return fault
    except (OSError, EOFError, zlib.error, lzma.LZMAError):  # what holds the text is damaged, not the text
        return None
    return None


def delimiter_of(path: Path) -> str:
    """What stands between the fields of a CSV or TSV file."""
    return _DELIMITERS[kind_of(path)]


def header_of(path: Path) -> list[str]:
    """The names in the first line of a CSV or TSV file that is not empty; none for an empty file.

    Raises:
        LineError: A name is there twice, or the first row has more fields than the header. The reader of `datasets`
            would take the first of these for names of rows, and give every column its neighbour's values.
    """
    reader = csv.reader(_lines(path), delimiter=delimiter_of(path))
    rows = filter(None, reader)
    header = next(rows, [])
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise LineError(reader.line_num, f"names the column '{twice}' twice")
    _check_width(next(rows, []), header, reader.line_num)
    return header


def _check_width(row: list[str], header: list[str], line: int) -> None:
    if len(row) > len(header):
        raise LineError(line, f"has {len(row)} fields, and the header has {len(header)}")


def _lines(path: Path) -> Iterator[str]:
    open_file = _OPENERS.get(path.suffix.lower(), Path.open)
    with open_file(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise LineError(number, f"is not UTF-8 at byte {error.start + 1}") from None
            yield text.removeprefix("\ufeff") if number == 1 else text


def _check_json_lines(path: Path) -> None:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise LineError(number, _no_json(error)) from None
        if not isinstance(value, dict):
            raise LineError(number, "is no JSON object")


def _check_json(path: Path) -> None:
    try:
        value = json.loads("".join(_lines(path)))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # a value a line: JSON lines under the wrong suffix, which is fine
            _check_json_lines(path)
        raise LineError(error.lineno, _no_json(error)) from None
    if not isinstance(value, list | dict):
        raise LineError(1, "is no JSON array of objects")


def _no_json(error: json.JSONDecodeError) -> str:
    return f"is no JSON ({error.msg.removesuffix(' at')} at column {error.colno})"


def _check_table(path: Path) -> None:
    header = header_of(path)
    reader = csv.reader(_lines(path), delimiter=delimiter_of(path), strict=True)
    try:
        for row in reader:
            _check_width(row, header, reader.line_num)
    except csv.Error as error:
        raise LineError(reader.line_num, f"is no CSV ({error})") from None
