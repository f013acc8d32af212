"""ROUGE: F1 of what an answer and its reference share (Lin, ROUGE, 2004), as Google's `rouge-score` counts it."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

from malora_cli.evals.metrics._base import TextMetric
from malora_cli.words import words


class Rouge(TextMetric):
    """F1 of what ``counted`` names in the library, over words of any script: its tokenizer knows ASCII alone."""

    counted: ClassVar[str]

    def score(self, prediction: str, reference: str) -> float:
        """The library's own."""
        return float(_scorer(self.counted).score(reference, prediction)[self.counted].fmeasure)

    def reads(self, reference: str) -> bool:
        """Whether it has what is counted, so that it scores as an answer to itself; one word makes no pair."""
        return self.score(reference, reference) > 0


@cache
def _scorer(counted: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # it loads nltk, which others need not wait for

    class Words:
        def tokenize(self, text: str) -> list[str]:
            return words(text)

    return RougeScorer([counted], tokenizer=Words())
