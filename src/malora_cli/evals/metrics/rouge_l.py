"""ROUGE-L: F1 of the longest common subsequence of words."""

from __future__ import annotations

from typing import ClassVar, Literal

from malora_cli.evals.metrics._rouge import Rouge


class RougeL(Rouge):
    """F1 of the longest sequence of words that is in both in this order."""

    name: Literal["rouge-l"] = "rouge-l"
    counted: ClassVar[str] = "rougeL"


METRIC = RougeL
