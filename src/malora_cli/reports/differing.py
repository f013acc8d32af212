"""Rows of an evaluation on which base and adapter score differently, a few of very many."""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from malora_cli.results.predictions import predictions_path, read_predictions

#: Rows that a page shows.
ROWS = 12
#: Characters of a text that it shows: about 300 tokens of English.
_LONGEST = 1200
#: The part of them that comes from the end, where answers to long questions stand.
_FROM_END = 0.3


@dataclass(frozen=True)
class Side:
    """What one model answered to a row."""

    text: str
    score: float
    unread: bool
    outcome: str

    @property
    def said(self) -> str:
        """What the answer is worth, and why where that is known."""
        why = self.outcome or ("could not be read" if self.unread else "")
        return f"{self.score:.2g}" + (f" ({why})" if why else "")


@dataclass(frozen=True)
class DifferingRow:
    """A row on which base and adapter score differently, with long texts cut.

    Args:
        task: Name of its task.
        number: In the task's source, from 1; None where it is not known.
        prompt: What was asked.
        reference: What was right; one line each where several are.
        base: The base model's answer.
        adapter: The adapter's.
    """

    task: str
    number: int | None
    prompt: str
    reference: str
    base: Side
    adapter: Side


@dataclass(frozen=True)
class Differing:
    """Where base and adapter differ.

    Args:
        rows: Some of these rows: those that the adapter does worse first, then those that it does better.
        worse: Rows in all that it does worse.
        better: Those that it does better.
        total: Rows that both have answered.
    """

    rows: tuple[DifferingRow, ...]
    worse: int
    better: int
    total: int

    @classmethod
    def read(cls, evaluation: Path, tasks: Collection[str]) -> Differing | None:
        """Choose rows among the predictions of an evaluation: at random, the same ones each time, of every task alike.

        Args:
            evaluation: Its ``.json`` file.
            tasks: Names of the tasks of which rows may be chosen.

        Returns:
            None where the predictions are not there.

        Raises:
            RunError: They are damaged.
        """
        if not predictions_path(evaluation).is_file():
            return None
        return cls._of(read_predictions(evaluation), tasks)

    @classmethod
    def between(cls, before: Path, after: Path, tasks: Collection[str]) -> Differing | None:
        """The same of two runs that were evaluated on the same rows; the first stands in the place of the base.

        Args:
            before: The ``.json`` file of the one's evaluation.
            after: That of the other's.
            tasks: Names of the tasks of which rows may be chosen.

        Returns:
            None where the predictions of one are not there.

        Raises:
            RunError: They are damaged.
        """
        if not all(predictions_path(evaluation).is_file() for evaluation in (before, after)):
            return None
        known = {_asked(row): row for row in read_predictions(before)}
        both = ((known.get(_asked(row)), row) for row in read_predictions(after))
        return cls._of((_beside(one, other) for one, other in both if one is not None), tasks)

    @classmethod
    def _of(cls, rows: Iterable[Mapping[str, Any]], tasks: Collection[str]) -> Differing:
        worse, better, total = _Draw(), _Draw(), 0
        for row in rows:
            change = _change(row)
            total += change is not None
            if change:
                (better if change > 0 else worse).add(row, shown=row["task"] in tasks)
        losses, wins = worse.rows(), better.rows()
        half = max(ROWS // 2, ROWS - len(wins))
        return cls((*losses[:half], *wins[: ROWS - len(losses[:half])]), worse.count, better.count, total)


class _Draw:
    """Rows of one kind: how many there are, and of every task a few at random, decided by what is asked."""

    def __init__(self) -> None:
        self.count = 0
        self._heaps: dict[str, list[tuple[int, int, DifferingRow]]] = defaultdict(list)

    def add(self, row: Mapping[str, Any], *, shown: bool) -> None:
        """One more of them."""
        self.count += 1
        if not shown:
            return
        asked = _asked(row).encode(errors="surrogatepass")
        luck, heap = int.from_bytes(hashlib.sha256(asked).digest()[:8]), self._heaps[row["task"]]
        if len(heap) < ROWS:
            heapq.heappush(heap, (luck, self.count, _row(row)))
        elif luck > heap[0][0]:
            heapq.heapreplace(heap, (luck, self.count, _row(row)))

    def rows(self) -> list[DifferingRow]:
        """As many as a page shows, one of every task before two of one."""
        ranked = (enumerate(sorted(heap, key=lambda item: -item[0])) for heap in self._heaps.values())
        drawn = sorted(chain.from_iterable(ranked), key=lambda item: (item[0], -item[1][0]))
        return [row for _, (_, _, row) in drawn[:ROWS]]


def _asked(row: Mapping[str, Any]) -> str:
    """Which row it is, whoever answers."""
    return f"{row['task']}\0{row.get('row')}\0{row['prompt']}"


def _beside(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the answers of two adapters, the first in the place of the base's."""
    shared = {key: value for key, value in after.items() if not key.startswith("base")}
    return shared | {f"base{key[7:]}": value for key, value in before.items() if key.startswith("adapter")}


def _change(row: Mapping[str, Any]) -> float | None:
    """By how much the adapter scores more; None where one of the two has no score."""
    base, adapter = row.get("base_score"), row.get("adapter_score")
    if not isinstance(base, int | float) or not isinstance(adapter, int | float):
        return None
    return adapter - base


def _row(row: Mapping[str, Any]) -> DifferingRow:
    number, references = row.get("row"), row.get("references", [row.get("reference", "")])
    return DifferingRow(
        task=row["task"],
        number=number + 1 if isinstance(number, int) else None,
        prompt=clipped(row["prompt"]),
        reference=clipped("\n".join(map(str, references if isinstance(references, list) else [references]))),
        base=_side(row, "base"),
        adapter=_side(row, "adapter"),
    )


def _side(row: Mapping[str, Any], which: str) -> Side:
    return Side(
        text=clipped(str(row.get(which, ""))),
        score=float(row[f"{which}_score"]),
        unread=bool(row.get(f"{which}_unread")),
        outcome=str(row.get(f"{which}_outcome", "")),
    )


def clipped(text: str) -> str:
    """A text without its middle where it is long, and how much that is."""
    if len(text) <= _LONGEST:
        return text
    tail = round(_LONGEST * _FROM_END)
    return f"{text[: _LONGEST - tail]} [… {len(text) - _LONGEST:,} characters …] {text[-tail:]}"
