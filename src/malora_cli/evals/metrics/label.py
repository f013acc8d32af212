"""Accuracy of labels: 1 for an answer that is the right one of the labels that a task has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from malora_cli.evals.metrics._base import Answer, Mark, Metric
from malora_cli.evals.metrics._labels import read_labels


class Label(Metric):
    """1 for the right label, case and white space aside; what is none of the references' labels is unread."""

    name: Literal["label"] = "label"

    def marks(self, answers: Sequence[Answer]) -> list[Mark]:
        """Whether each answer is the right label."""
        return [Mark.of(float(one.given == one.right), unread=one.given is None) for one in read_labels(answers)[1]]


METRIC = Label
