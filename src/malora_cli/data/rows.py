"""The rows of a source, and where each of them stands in it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, ReadInstruction, concatenate_datasets

from malora_cli.data.cache import cached, key_of
from malora_cli.data.order import Ints
from malora_cli.data.typed import no_text
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings
from malora_cli.results import NotedRows

_LOT = 10_000


@dataclass(frozen=True)
class File:
    """A file of rows.

    Args:
        name: The file.
        rows: How many it has, or how many are read of it.
        types: Its columns, and what each holds.
        lines: The line of each row, from 1; None where they have none, or several stand on one.
        unit: What a number stands for in messages.
    """

    name: str
    rows: int
    types: Mapping[str, str]
    lines: pa.ChunkedArray | None = None
    unit: str = "row"


#: Files, and the rows of all of them.
Part = tuple[Sequence[File], Dataset]


@dataclass(frozen=True)
class Places:
    """Where rows stand in their source.

    Args:
        source: Where they come from.
        files: Files of rows in their order; none for rows that lie otherwise.
        picked: Which rows of the source these are; None for all in their order.
    """

    source: str
    files: Sequence[File] = ()
    picked: Ints | None = None

    def number(self, row: int) -> int:
        """The line of a row in its text file; elsewhere, how many rows stand before it there, and one."""
        file, at = self._found(row)
        return at + 1 if file is None or file.lines is None else file.lines[at].as_py()

    def name(self, row: int) -> str:
        """A row by its number, for messages."""
        file, _ = self._found(row)
        return f"{'row' if file is None else file.unit} {self.number(row)}"

    def file(self, row: int) -> str:
        """The file of a row, or the source."""
        file, _ = self._found(row)
        return self.source if file is None else file.name

    def _found(self, row: int) -> tuple[File | None, int]:
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
    unused: tuple[NotedRows, ...] = ()

    @property
    def source(self) -> str:
        """Where they are, for messages."""
        return self.settings.path

    @property
    def columns(self) -> list[str]:
        """The columns of all files, also those in which these do not agree."""
        return [
            *dict.fromkeys([*self.dataset.column_names, *(name for file in self.places.files for name in file.types)])
        ]

    def check(self, used: Collection[str], needed: Collection[str]) -> None:
        """Make sure that what is used of the rows is alike in all files.

        Args:
            used: Columns.
            needed: Those of them without which a row is no example.

        Raises:
            DataError: A file has one as another type, or lacks one that is needed.
        """
        for column in used:
            having = [file for file in self.places.files if column in file.types]
            if column not in self.dataset.column_names:
                first, *others = having
                other = next((file for file in others if file.types[column] != first.types[column]), others[0])
                raise DataError(
                    f"has '{column}' as {other.types[column]}, and {Path(first.name).name} as {first.types[column]}",
                    where=other.name,
                    fix="Save them alike, or name the files that are.",
                )
            lacking = [file for file in self.places.files if column in needed and column not in file.types]
            if lacking:
                what = f"has no column '{column}', which {Path(having[0].name).name} has"
                raise DataError(what, where=lacking[0].name, fix="Add it, or name the files that have it.")

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


def of_splits(read: Mapping[str, Sequence[Part]], source: SourceSettings, split: str) -> Rows:
    """Rows of some splits, or of parts of splits.

    Args:
        read: What was read of each split, no more than the source is to be read of.
        source: Where they are.
        split: Which splits or parts of them.

    Raises:
        DataError: There are no rows.
    """
    counts = {name: sum(len(rows) for _, rows in parts) for name, parts in read.items()}
    taken = ReadInstruction.from_spec(split).to_absolute(counts)
    total = sum(counts.values())
    if not total:
        raise DataError("has no rows", where=source.path)
    parts = [part for name in read for part in read[name]]
    places = Places(source.path, [file for files, _ in parts for file in files])
    rows = Rows(joined([rows for _, rows in parts]), source, places)
    begins = dict(zip(counts, accumulate(counts.values(), initial=0), strict=False))
    picked = np.concatenate([begins[part.splitname] + np.arange(part.from_, part.to) for part in taken])
    picked = picked[: source.stream]
    return rows if np.array_equal(picked, np.arange(total)) else rows.select(picked)
