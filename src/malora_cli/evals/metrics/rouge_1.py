"""ROUGE-1: F1 of the words that an answer and its reference share."""

from __future__ import annotations

from typing import ClassVar, Literal

from malora_cli.evals.metrics._rouge import Rouge


class Rouge1(Rouge):
    """F1 of the shared words, in any order, each as often as it stands in both."""

    name: Literal["rouge-1"] = "rouge-1"
    counted: ClassVar[str] = "rouge1"


METRIC = Rouge1
