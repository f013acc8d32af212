"""Accuracy by nats a character: 1 where that choice is right; lm-evaluation-harness's `acc_norm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from malora_cli.evals.metrics._base import Answer
from malora_cli.evals.metrics._choosing import Choosing


class AccuracyNorm(Choosing):
    """Choices are compared by their nats a character, so that long ones are not at a loss."""

    name: Literal["accuracy-norm"] = "accuracy-norm"

    def weights(self, answer: Answer) -> Sequence[float]:
        """The nats a character."""
        return [nats / len(text) for nats, text in zip(answer.nats, answer.facts["choices"], strict=True)]


METRIC = AccuracyNorm
