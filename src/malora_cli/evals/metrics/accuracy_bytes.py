"""Accuracy by nats a byte of UTF-8: 1 where that choice is right; lm-evaluation-harness's `acc_bytes`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from malora_cli.evals.metrics._base import Answer
from malora_cli.evals.metrics._choosing import Choosing


class AccuracyBytes(Choosing):
    """Choices are compared by their nats a byte, which is the same in every script and for every tokenizer."""

    name: Literal["accuracy-bytes"] = "accuracy-bytes"

    def weights(self, answer: Answer) -> Sequence[float]:
        """The nats a byte."""
        return [nats / len(text.encode()) for nats, text in zip(answer.nats, answer.facts["choices"], strict=True)]


METRIC = AccuracyBytes
