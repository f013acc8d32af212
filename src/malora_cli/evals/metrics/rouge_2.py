"""ROUGE-2: F1 of the pairs of words that an answer and its reference share."""

from __future__ import annotations

from typing import ClassVar, Literal

from malora_cli.evals.metrics._rouge import Rouge


class Rouge2(Rouge):
    """F1 of the shared pairs of words that follow each other."""

    name: Literal["rouge-2"] = "rouge-2"
    counted: ClassVar[str] = "rouge2"


METRIC = Rouge2
