"""The rows of a source, and where each of them stands in it."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import pyarrow as pa
from datasets import Dataset

from malora_cli.data.cache import cached, key_of
from malora_cli.data.order import Ints
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings

_LOT = 10_000


@dataclass(frozen=True)
class Places:
    """Where rows stand in their source.

    Args:
        source: Where they come from.
        files: Text files of rows in their order, each with how many it has; none for rows of another kind.
        lines: The line of every row of these files.
        picked: Which rows of the source these are; None for all in their order.
    """

    source: str
    files: Sequence[tuple[str, int]] = ()
    lines: Dataset | None = None
    picked: Ints | None = None

    def number(self, row: int) -> int:
        """The line of a row in its text file; in another source, how many rows stand before it, and one."""
        at = self._at(row)
        return at + 1 if self.lines is None else int(self.lines[at]["line"])

    def file(self, row: int) -> str:
        """The text file of a row, or the source."""
        ends = list(accumulate(count for _, count in self.files))
        return self.files[bisect_right(ends, self._at(row))][0] if ends else self.source

    def _at(self, row: int) -> int:
        return row if self.picked is None else int(self.picked[row])

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
    """

    dataset: Dataset
    settings: SourceSettings
    places: Places

    @property
    def source(self) -> str:
        """Where they are, for messages."""
        return self.settings.path

    def select(self, rows: Ints) -> Rows:
        """Some of the rows."""
        return Rows(self.dataset.select(rows), self.settings, self.places.select(rows))

    def sha256(self, used: Dataset) -> str:
        """Hash of what some columns hold, wherever the file lies and whatever it is called; kept in the cache.

        Args:
            used: The dataset with these columns alone.

        Raises:
            DataError: A text of theirs is none: the readers take that on trust.
        """
        key = key_of("content", self.dataset._fingerprint, used.column_names)
        return str(cached(key, lambda _: {"source": self.source, "sha256": self._hash(used)})[1]["sha256"])

    def _hash(self, used: Dataset) -> str:
        digest = hashlib.sha256()
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
