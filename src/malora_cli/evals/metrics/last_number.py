"""The last number of an answer against that of the reference, as GSM8K is scored: 1 where they are equal."""

from __future__ import annotations

from typing import Literal

from malora_cli.evals.metrics._base import TextMetric
from malora_cli.evals.metrics._numbers import number_of


class LastNumber(TextMetric):
    r"""The last number of an answer; what is in ``\boxed{}``, or stands behind ``####``, comes before others."""

    name: Literal["last-number"] = "last-number"

    def score(self, prediction: str, reference: str) -> float:
        """Whether the numbers are equal; an answer without one scores 0."""
        number = number_of(prediction)
        return float(number is not None and number == number_of(reference))

    def reads(self, reference: str) -> bool:
        """Whether it has a number."""
        return number_of(reference) is not None


METRIC = LastNumber
