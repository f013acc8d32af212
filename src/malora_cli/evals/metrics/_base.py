"""What a metric is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from malora_cli.recipe import MetricSettings


class Metric(MetricSettings):
    """A score of generated answers, with its options as fields; a task's score is the mean over its rows."""

    @abstractmethod
    def score(self, prediction: str, reference: str) -> float:
        """From 0 to 1, higher is better."""

    def scores(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """Score of each row: the best over its right answers."""
        rows = zip(predictions, references, strict=True)
        return [max(self.score(prediction, reference) for reference in rights) for prediction, rights in rows]
