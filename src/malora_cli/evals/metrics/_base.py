"""What a metric is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from malora_cli.recipe import MetricSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Sums = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """What a model answered to one row, and what it is measured against.

    Args:
        text: What it generated; empty for a metric of another kind.
        references: Right answers, the one that is trained first.
        prompt: All that was said before.
        facts: What else the row holds, under the names of the metric's ``needs``.
        nats: Of every choice in ``facts["choices"]``, behind the prompt; for a metric of the kind ``choices``.
        prior_nats: Of every choice without the question, for a metric that asks for them.
        reference_nats: Of the first reference.
    """

    text: str
    references: Sequence[str]
    prompt: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    nats: Sequence[float] = ()
    prior_nats: Sequence[float] = ()
    reference_nats: float = 0.0


@dataclass(frozen=True)
class Mark:
    """What one answer is worth.

    Args:
        score: Of this row alone, from 0 to 1.
        counts: What `Metric.value` makes the task's score of, summed over rows.
        unread: Whether nothing could be read from the answer, so that it counts as wrong.
        outcome: What became of it, where there is more to say than right or wrong.
    """

    score: float
    counts: tuple[float, ...]
    unread: bool = False
    outcome: str = ""

    @classmethod
    def of(cls, score: float, *, unread: bool = False, outcome: str = "") -> Mark:
        """One that counts by its score alone, as where a task's score is the mean over rows."""
        return cls(score, (score, 1.0), unread, outcome)


class Metric(MetricSettings):
    """A score of answers, with its options as fields."""

    @abstractmethod
    def marks(self, answers: Sequence[Answer]) -> list[Mark]:
        """What each of a task's answers is worth."""

    def value(self, sums: Sums) -> Sums:
        """The task's score, from 0 to 1, higher is better.

        Args:
            sums: Of the counts of some rows, shape ``(..., counts)``.

        Returns:
            Shape ``(...)``. By default the mean over rows.
        """
        return sums[..., 0] / sums[..., 1]


class TextMetric(Metric):
    """A score of generated text against each right answer; a task's score is the mean over its rows."""

    @abstractmethod
    def score(self, prediction: str, reference: str) -> float:
        """From 0 to 1, higher is better."""

    def scores(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """Score of each row: the best over its right answers."""
        rows = zip(predictions, references, strict=True)
        return [max(self.score(prediction, reference) for reference in rights) for prediction, rights in rows]

    def marks(self, answers: Sequence[Answer]) -> list[Mark]:
        """The best over the right answers of each; one that nothing can be read from is unread."""
        scores = self.scores([answer.text for answer in answers], [answer.references for answer in answers])
        return [
            Mark.of(score, unread=not self.reads(answer.text)) for score, answer in zip(scores, answers, strict=True)
        ]
