"""What a metric is."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from malora_cli.recipe import MetricSettings
from malora_cli.results.statistics import Measured, ratio

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from malora_cli.results.statistics.arrays import FloatArray


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
        reference_nats: Of the first reference; no number where it was not measured.
    """

    text: str
    references: Sequence[str]
    prompt: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    nats: Sequence[float] = ()
    prior_nats: Sequence[float] = ()
    reference_nats: float = math.nan


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

    #: Whether answers are run as programs, which only a user can allow.
    runs_code: ClassVar[bool] = False
    #: Whether it compares the choices with how likely each is without the question.
    needs_prior: ClassVar[bool] = False

    @abstractmethod
    def marks(self, answers: Sequence[Answer]) -> list[Mark]:
        """What each answer is worth; of all rows of a task at once, whose references may say what can be answered."""

    def value(self, sums: FloatArray) -> FloatArray:
        """The task's score, from 0 to 1, higher is better.

        Args:
            sums: Of the counts of some rows, shape ``(..., counts)``.

        Returns:
            Shape ``(...)``. By default the mean over rows.
        """
        return ratio(sums)

    @property
    def is_mean(self) -> bool:
        """Whether a task's score is the mean over its rows."""
        return type(self).value is Metric.value

    def measured(self, marks: Sequence[Mark], clusters: ArrayLike | None = None) -> Measured:
        """A task's rows for its score, its interval and comparisons.

        Args:
            marks: Of its rows.
            clusters: The cluster of every row; None makes each row its own.

        Raises:
            DataError: There are no rows, or one has no finite score.
        """
        import numpy as np

        counts = np.asarray([mark.counts for mark in marks], dtype=np.float64)
        if self.is_mean:  # it says of scores of 0 and 1 that they are proportions
            return Measured(counts, clusters)
        return Measured(counts, clusters, self.value, own=[mark.score for mark in marks])


class CorpusMetric(Metric):
    """A score of all answers together, from counts that add up; a row's own score is that of its counts alone."""

    @abstractmethod
    def counts(self, answer: Answer) -> tuple[float, ...]:
        """What `value` makes the score of, for one answer."""

    def marks(self, answers: Sequence[Answer]) -> list[Mark]:
        """The counts of each answer, and what they alone come to."""
        import numpy as np

        counts = [self.counts(answer) for answer in answers]
        scores = self.value(np.asarray(counts, dtype=np.float64))
        return [
            Mark(float(score), row, unread=not self.reads(answer.text))
            for score, row, answer in zip(scores, counts, answers, strict=True)
        ]


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
