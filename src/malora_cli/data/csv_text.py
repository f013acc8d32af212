"""CSV and TSV as they are written: the names of the columns, and the fields of each row with its line."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import IO

from malora_cli.data.json_text import LineError
from malora_cli.recipe import SourceSettings

#: What parts the fields of files of a kind.
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_OTHERS = (",", ";", "\t", "|")
#: Kinds of the files that are read here.
TABLES = tuple(_DELIMITERS)
MOST_COLUMNS = 10_000


class Table:
    """A CSV or TSV file.

    Args:
        file: Its text.
        kind: ``".csv"`` or ``".tsv"``.
        source: What is said of how it is written.

    Raises:
        LineError: It is not valid CSV, or names a column twice.
    """

    def __init__(self, file: IO[str], kind: str, source: SourceSettings) -> None:
        csv.field_size_limit(2**31 - 1)  # the module's, for all of the process; by default long texts are refused
        self._source = source
        self._delimiter = source.delimiter or _DELIMITERS[kind]
        self._records = self._read(file)
        self._first = next(self._records, None)
        #: The names in the first line that is not empty, or positions where it names none.
        self.names = [] if self._first is None else self._names(*self._first)

    def _names(self, line: int, first: list[str]) -> list[str]:
        if len(first) > MOST_COLUMNS:
            raise LineError(line, f"names {len(first):,} columns, more than {MOST_COLUMNS:,}")
        if self._source.header is False:
            return [str(position) for position in range(len(first))]
        twice = next((name for name, count in Counter(first).items() if name and count > 1), None)
        if twice is not None:
            raise LineError(line, f"names the column '{twice}' twice")
        other = next((mark for mark in _OTHERS if len(first) == 1 and mark in first[0]), None)
        if other is not None and self._source.delimiter is None:
            shown = "\\t" if other == "\t" else other
            fix = f'Set what parts the fields, as in `delimiter: "{shown}"` of the source.'
            raise LineError(line, f"names one column, '{first[0][:80]}'", fix)
        return first

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The fields of the rows that are not empty, each with the line it begins in; once.

        Raises:
            LineError: One is not valid CSV, or has more fields than there are columns.
        """
        headless = [self._first] if self._first is not None and self._source.header is False else []
        for line, fields in chain(headless, self._records):
            if len(fields) > len(self.names):
                what = "first row" if headless else "header"
                raise LineError(line, f"has {len(fields):,} fields, and the {what} has {len(self.names):,}")
            yield line, fields

    def _read(self, file: IO[str]) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(
            file,
            delimiter=self._delimiter,
            quoting=csv.QUOTE_NONE if self._source.quotes is False else csv.QUOTE_MINIMAL,
            strict=True,
        )
        unsure = self._delimiter == "\t" and self._source.quotes is None
        begins = 1
        try:
            for fields in reader:
                if unsure and reader.line_num > begins:
                    _check_quotes(begins, fields)
                if fields:
                    yield begins, fields
                begins = reader.line_num + 1
        except csv.Error as error:
            fix = "Mend the line, or set `quotes: false` of the source where quotes are text."
            raise LineError(begins, f"is not valid CSV ({error})", fix) from None


def _check_quotes(line: int, fields: list[str]) -> None:
    """Refuse a field that may be several lines of a file in which quotes are text."""
    if any("\t" in field and "\n" in field for field in fields):
        what = "has a field between quotes that goes over lines with tabs"
        fix = "Set `quotes` of the source: true where it is one field, false where quotes are text."
        raise LineError(line, what, fix)
