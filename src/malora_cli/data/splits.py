"""The encoded rows of one split of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import nlargest

import numpy as np
from datasets import Dataset

from malora_cli.data.batch import TrainExample
from malora_cli.data.order import Ints, Shuffle
from malora_cli.data.rows import Places
from malora_cli.results import NotedRows

_LOT = 100_000
#: Row numbers that are told of each reason.
SAMPLES = 5
#: How the reason begins for which rows are left out that are too long.
LONGER = "longer than"
_CAP, _SAMPLE = 2, 3  # what a random stream is for, beside the seed


@dataclass(frozen=True)
class Split:
    """The encoded rows of one split of one task, those of ``picked`` where there are more than the task may use.

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
        picked: Position among the encoded rows of each row of the split; None for all in their order.
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
    picked: Ints | None = None

    def __len__(self) -> int:
        return len(self.encoded) if self.picked is None else len(self.picked)

    @cached_property
    def rows(self) -> Dataset:
        """The rows of this split alone, all columns."""
        return self.encoded if self.picked is None else self.encoded.select(self.picked)

    @cached_property
    def _tokens(self) -> Dataset:
        return self.encoded.select_columns(["input_ids", "spans"])

    @cached_property
    def _counts(self) -> Dataset:
        return self.encoded.select_columns(["tokens", "label_tokens"]).with_format("numpy")

    def examples(self, rows: Sequence[int], task: int) -> list[TrainExample]:
        """Some rows, as examples of task number ``task``."""
        found = self._tokens[self._chosen(rows)]
        return [
            TrainExample(ids, list(zip(spans[::2], spans[1::2], strict=True)), task)
            for ids, spans in zip(found["input_ids"], found["spans"], strict=True)
        ]

    def source_rows(self, rows: Sequence[int]) -> list[int]:
        """Where some rows stand in their source: the line of each in its text file, or its number from 1."""
        return [self.places.number(row) for row in self.encoded[self._chosen(rows)]["row"]]

    def _chosen(self, rows: Sequence[int]) -> list[int]:
        """Where some rows are among the encoded ones."""
        return list(rows) if self.picked is None else self.picked[np.asarray(rows)].tolist()

    def lengths(self, rows: Ints) -> Ints:
        """Tokens of some rows."""
        return self._counted("tokens", rows)

    def _counted(self, column: str, rows: Ints) -> Ints:
        chosen = rows if self.picked is None else self.picked[rows]
        if len(chosen) and chosen[-1] - chosen[0] == len(chosen) - 1 and (np.diff(chosen) == 1).all():
            return np.asarray(self._counts[int(chosen[0]) : int(chosen[-1]) + 1][column], dtype=np.int64)
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
        return self.totals[0] if self.picked is None else self._sum("tokens")

    @cached_property
    def label_tokens(self) -> int:
        """Supervised tokens."""
        return self.totals[1] if self.picked is None else self._sum("label_tokens")

    def _sum(self, column: str) -> int:
        return int(self._counted(column, np.arange(len(self))).sum())

    @property
    def too_long(self) -> int:
        """Rows that were left out because of their length."""
        return sum(unused.rows for unused in self.left_out if unused.reason.startswith(LONGER))

    @property
    def unused(self) -> list[NotedRows]:
        """Rows of the source that are not in this split, by reason."""
        if self.picked is None:
            return list(self.left_out)
        beyond = np.setdiff1d(np.arange(len(self.encoded)), self.picked, assume_unique=True)
        numbers = self.encoded.select(beyond[:SAMPLES])["row"]
        samples = [self.places.number(number) for number in numbers]
        return [*self.left_out, NotedRows(reason="beyond max_rows", rows=len(beyond), samples=samples)]

    def capped(self, rows: int | None) -> Split:
        """At most so many rows, chosen at random: a smaller cap keeps a part of what a larger one does."""
        if rows is None or rows >= len(self.encoded):
            return self
        return replace(self, picked=_drawn(rows, len(self.encoded), [*self.seed, _CAP]))

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
