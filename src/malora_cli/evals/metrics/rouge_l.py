"""ROUGE-L: F1 of the longest common subsequence of words (Lin, ROUGE, 2004), as Google's `rouge-score` counts it."""

from __future__ import annotations

from collections.abc import Sequence

from malora_cli.evals.metrics._base import Metric


def _scores(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    from rouge_score.rouge_scorer import RougeScorer  # it loads nltk, which others need not wait for

    scorer = RougeScorer(["rougeL"])
    return [float(scorer.score(r, p)["rougeL"].fmeasure) for p, r in zip(predictions, references, strict=True)]


METRIC = Metric(_scores)
