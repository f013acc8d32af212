"""ROUGE-L: F1 of the longest common subsequence of words (Lin, ROUGE, 2004), as Google's `rouge-score` counts it."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from malora_cli.evals.metrics._base import TextMetric
from malora_cli.words import words


class RougeL(TextMetric):
    """F1 of the longest sequence of words that is in both in this order."""

    name: Literal["rouge-l"] = "rouge-l"

    def score(self, prediction: str, reference: str) -> float:
        """The library's own, over words of any script: its tokenizer knows those of ASCII alone."""
        return float(_scorer().score(reference, prediction)["rougeL"].fmeasure)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # it loads nltk, which others need not wait for

    class Words:
        def tokenize(self, text: str) -> list[str]:
            return words(text)

    return RougeScorer(["rougeL"], tokenizer=Words())


METRIC = RougeL
