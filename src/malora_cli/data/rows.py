"""The rows of a source, and where each of them stands in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from malora_cli.data.cache import cached, key_of
from malora_cli.data.order import Ints
from malora_cli.data.typed import no_text
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings
from malora_cli.results import UnusedRows

_LOT = 10_000


@dataclass(frozen=True)
class TextFile:
    """A text file of rows.

    Args:
        name: The file.
        rows: How many it has, or how many are read of it.
        lines: The line of each, from 1; None where several stand on one line.
    """

    name: str
    rows: int
    lines: pa.ChunkedArray | None


@dataclass(frozen=True)
class Places:
    """Where rows stand in their source.

    Args:
        source: Where they come from.
        files: Text files of rows in their order; none for rows of another kind.
        picked: Which rows of the source these are; None for all in their order.
    """

    source: str
    files: Sequence[TextFile] = ()
    picked: Ints | None = None

    def number(self, row: int) -> int:
        """The line of a row in its text file; in another source, how many rows stand before it, and one."""
        file, row = self._found(row)
        return row + 1 if file is None or file.lines is None else file.lines[row].as_py()

    def name(self, row: int) -> str:
        """A row by its number, for messages; it is a record where that is no line of its text file."""
        file, _ = self._found(row)
        return f"{'record' if file is not None and file.lines is None else 'row'} {self.number(row)}"

    def file(self, row: int) -> str:
        """The text file of a row, or the source."""
        file, _ = self._found(row)
        return self.source if file is None else file.name

    def _found(self, row: int) -> tuple[TextFile | None, int]:
        """The file of a row and its place there, or in the source."""
        at = row if self.picked is None else int(self.picked[row])
        for file in self.files:
            if at < file.rows:
                return file, at
            at -= file.rows
        return None, at

    def select(self, rows: Ints) -> Places:
        """Where some of the rows stand."""
        return replace(self, picked=rows if self.picked is None else self.picked[rows])


@dataclass(frozen=True)
class Rows:
    """The rows of one split as they are in their source.

    Args:
        dataset: All columns, memory-mapped.
        settings: Where they are.
        places: Where each of them stands there.
        unused: Rows of the source that are not among them, by reason.
    """

    dataset: Dataset
    settings: SourceSettings
    places: Places
    unused: tuple[UnusedRows, ...] = ()

    @property
    def source(self) -> str:
        """Where they are, for messages."""
        return self.settings.path

    def select(self, rows: Ints) -> Rows:
        """Some of the rows."""
        return replace(self, dataset=self.dataset.select(rows), places=self.places.select(rows))

    def used(self, columns: Sequence[str]) -> Dataset:
        """Some columns of the rows.

        Raises:
            DataError: One holds what no text can be made of.
        """
        for column in columns:
            what = no_text(self.dataset.features[column])
            if what is not None:
                fix = "Map columns of text, and leave the rows out that mean nothing without it."
                raise DataError(f"the column '{column}' holds {what}, which is not text", where=self.source, fix=fix)
        return self.dataset.select_columns(list(columns))

    def sha256(self, columns: Sequence[str]) -> str:
        """Hash of what some columns hold, wherever the file lies and whatever it is called; kept in the cache.

        Raises:
            DataError: A text of theirs is none: the readers take that on trust.
        """
        key = key_of("content", self.dataset._fingerprint, list(columns))
        about = cached(key, lambda _: {"source": self.source, "sha256": self._hash(self.used(columns))})[1]
        return str(about["sha256"])

    def _hash(self, used: Dataset) -> str:
        digest = hashlib.sha256(str(used.features).encode())  # which have the names of classes
        try:
            for table in used.with_format("arrow").iter(_LOT):
                table.validate(full=True)
                for batch in table.combine_chunks().to_batches():
                    digest.update(batch.serialize())
        except (pa.ArrowException, UnicodeDecodeError) as error:
            fix = "Mend or replace it."
            raise DataError(
                "holds text that is not UTF-8, so the data are damaged", where=self.source, fix=fix
            ) from error
        return digest.hexdigest()


def joined(parts: Sequence[Dataset]) -> Dataset:
    """Datasets one behind another; what one of them lacks is missing in its rows."""
    return parts[0] if len(parts) == 1 else concatenate_datasets(list(parts))
