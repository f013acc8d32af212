"""The encoded rows of one split of a task."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from heapq import nlargest

import numpy as np
import pyarrow as pa
from datasets import Dataset

from malora_cli.data.batch import TrainExample
from malora_cli.data.order import AllBut, Ints, Shuffle
from malora_cli.data.rows import Places
from malora_cli.results import NotedRows

_LOT = 100_000
_TEXTS = 10_000
#: Row numbers that are told of each reason.
SAMPLES = 5
#: How the reason begins for which rows are left out that are too long.
LONGER = "longer than"
_CAP, _SAMPLE = 2, 3  # what a random stream is for, beside the seed


@dataclass(frozen=True)
class Split:
    """The encoded rows of one split of one task: all but those ``aside``, or of these the ones that are ``picked``.

    Args:
        encoded: Columns ``row`` (its number in the source, from 0), ``prompt``, ``references`` (right answers, the
            one it is trained on first), ``facts`` (what else metrics want, as JSON; empty for nothing), ``input_ids``,
            ``spans`` (starts and ends in turns), ``choices`` (tokens of each behind the prompt, without the end of the
            turn; none but for metrics that weigh them), ``tokens`` (all) and ``label_tokens``.
        source: Where they came from.
        key: Name of their cache entry.
        sha256: Hash of the tokens of all encoded rows, in order.
        read: Rows of the source.
        longest: Tokens of the longest encoded row.
        cut: Rows of which the length policy used a part, or made several.
        left_out: Rows that were not used, by reason.
        remarks: Rows that were used and of which there is something to say, by what.
        totals: Tokens and label tokens of all encoded rows.
        places: Where the rows of the source stand in it.
        seed: What its rows are drawn by.
        column_notes: What is to be known of the columns of the source.
        aside: Positions of encoded rows that are in another split, in ascending order.
        picked: Place among the other encoded rows of each row of the split; None for all in their order.
    """

    encoded: Dataset
    source: str
    key: str
    sha256: str
    read: int
    longest: int
    cut: int
    left_out: tuple[NotedRows, ...]
    remarks: tuple[NotedRows, ...]
    totals: tuple[int, int]
    places: Places
    seed: tuple[int, ...] = ()
    column_notes: tuple[str, ...] = ()
    aside: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    picked: Ints | None = None

    def __len__(self) -> int:
        return self._available if self.picked is None else len(self.picked)

    @property
    def _available(self) -> int:
        return len(self.encoded) - len(self.aside)

    @property
    def _whole(self) -> bool:
        return self.picked is None and not len(self.aside)

    @cached_property
    def rows(self) -> Dataset:
        """The rows of this split alone, all columns."""
        return self.encoded if self._whole else self.encoded.select(self._at(np.arange(len(self))))

    def texts(self, column: str) -> Iterator[pa.Array]:
        """What a column of text holds, some rows at a time."""
        rows = (self.encoded if self.picked is None else self.rows).with_format("arrow", columns=[column])
        for start in range(0, len(rows), _TEXTS):
            texts = rows[start : start + _TEXTS][column].combine_chunks()
            if self.picked is None:
                out = self.aside[slice(*np.searchsorted(self.aside, (start, start + _TEXTS)))] - start
                texts = texts.take(np.delete(np.arange(len(texts)), out)) if len(out) else texts
            yield texts

    @property
    def selection(self) -> str | None:
        """A hash of which of the encoded rows are in this split; None is all of them."""
        if self._whole:
            return None
        picked = b"" if self.picked is None else self.picked.tobytes()
        return hashlib.sha256(self.aside.tobytes() + b"|" + picked).hexdigest()

    @cached_property
    def _tokens(self) -> Dataset:
        return self.encoded.select_columns(["input_ids", "spans"])

    @cached_property
    def _counts(self) -> Dataset:
        return self.encoded.select_columns(["tokens", "label_tokens"]).with_format("numpy")

    def examples(self, rows: Sequence[int], task: int) -> list[TrainExample]:
        """Some rows, as examples of task number ``task``."""
        found = self._tokens[self._listed(rows)]
        return [
            TrainExample(ids, list(zip(spans[::2], spans[1::2], strict=True)), task)
            for ids, spans in zip(found["input_ids"], found["spans"], strict=True)
        ]

    def source_rows(self, rows: Sequence[int]) -> list[int]:
        """Where some rows stand in their source: the line of each in its text file, or its number from 1."""
        return [self.places.number(row) for row in self.encoded[self._listed(rows)]["row"]]

    def _at(self, rows: Ints) -> Ints:
        """Where some rows are among the encoded ones."""
        return AllBut(self.aside)(rows if self.picked is None else self.picked[rows])

    def _listed(self, rows: Sequence[int]) -> list[int]:
        return self._at(np.asarray(rows, dtype=np.int64)).tolist()

    def lengths(self, rows: Ints) -> Ints:
        """Tokens of some rows."""
        return self._counted("tokens", self._at(rows))

    def _counted(self, column: str, chosen: Ints) -> Ints:
        """What a column says of some of the encoded rows."""
        if len(chosen) and chosen[-1] - chosen[0] < 2 * len(chosen) and (np.diff(chosen) > 0).all():
            # Row by row, what lies all but side by side takes a hundred times as long.
            there = self._counts[int(chosen[0]) : int(chosen[-1]) + 1][column]
            return np.asarray(there, dtype=np.int64)[chosen - chosen[0]]
        return np.asarray(self._counts[chosen.tolist()][column], dtype=np.int64)

    def longest_rows(self, count: int) -> list[int]:
        """The rows with the most tokens, longest first."""
        found: list[tuple[int, int]] = []
        for start in range(0, len(self), _LOT):
            rows = np.arange(start, min(start + _LOT, len(self)))
            found = nlargest(count, [*found, *zip(self.lengths(rows).tolist(), (-rows).tolist(), strict=True)])
        return [-row for _, row in found]

    @cached_property
    def tokens(self) -> int:
        """All tokens."""
        return self._sum("tokens", self.totals[0])

    @cached_property
    def label_tokens(self) -> int:
        """Supervised tokens."""
        return self._sum("label_tokens", self.totals[1])

    def _sum(self, column: str, of_all: int) -> int:
        if self.picked is None:
            return of_all - int(self._counted(column, self.aside).sum())
        return int(self._counted(column, self._at(np.arange(len(self)))).sum())

    @property
    def too_long(self) -> int:
        """Rows that were left out because of their length."""
        return sum(unused.rows for unused in self.left_out if unused.reason.startswith(LONGER))

    @property
    def unused(self) -> list[NotedRows]:
        """Rows of the source that are in no split, by reason."""
        if self.picked is None:
            return list(self.left_out)
        beyond = np.setdiff1d(np.arange(self._available), self.picked, assume_unique=True)
        numbers = self.encoded.select(AllBut(self.aside)(beyond[:SAMPLES]))["row"]
        samples = [self.places.number(number) for number in numbers]
        return [*self.left_out, NotedRows(reason="beyond max_rows", rows=len(beyond), samples=samples)]

    def capped(self, rows: int | None) -> Split:
        """At most so many rows, chosen at random: a smaller cap keeps a part of what a larger one does."""
        if rows is None or rows >= self._available:
            return self
        return replace(self, picked=_drawn(rows, self._available, [*self.seed, _CAP]))

    def none(self) -> Split:
        """A split of the same source without rows."""
        empty = self.encoded.select(range(0))
        nothing = hashlib.sha256().hexdigest()
        return replace(self, encoded=empty, sha256=nothing, longest=0, cut=0, left_out=(), remarks=(), totals=(0, 0))

    def sample(self, rows: int | None) -> Sequence[int]:
        """Numbers of at most so many rows, chosen at random: a smaller sample is a part of a larger one.

        Files are often sorted, so their first rows stand for nothing but themselves.
        """
        if rows is None or rows >= len(self):
            return range(len(self))
        drawn: list[int] = _drawn(rows, len(self), [*self.seed, _SAMPLE]).tolist()
        return drawn


def _drawn(rows: int, of: int, seed: Sequence[int]) -> Ints:
    """Some of so many numbers in ascending order, the same for the same seed."""
    return np.sort(Shuffle(of, seed)(np.arange(rows)))
