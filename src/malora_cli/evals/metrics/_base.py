"""What a metric is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A score of generated answers.

    Args:
        scores: Score of each row, from 0 to 1 (higher is better), of predictions and their references. A task's score
            is the mean; rows are kept apart so that two runs can be compared row by row.
    """

    scores: Callable[[Sequence[str], Sequence[str]], list[float]]
