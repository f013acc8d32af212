"""Accuracy: 1 where the most likely of the choices is right; lm-evaluation-harness's `acc`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from malora_cli.evals.metrics._base import Answer
from malora_cli.evals.metrics._choosing import Choosing


class Accuracy(Choosing):
    """Choices are compared by all their nats, so that short ones are favoured."""

    name: Literal["accuracy"] = "accuracy"

    def weights(self, answer: Answer) -> Sequence[float]:
        """The nats as they are."""
        return answer.nats


METRIC = Accuracy
