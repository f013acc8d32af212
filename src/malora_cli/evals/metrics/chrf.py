"""chrF of all answers of a task together (Popović, 2015), as `sacrebleu` counts it (arXiv 1804.08771)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from malora_cli.evals.metrics._base import Answer, CorpusMetric

if TYPE_CHECKING:
    from sacrebleu.metrics.chrf import CHRF

    from malora_cli.results.statistics.arrays import FloatArray

#: Recall counts so many times as much as precision.
_BETA = 2


class Chrf(CorpusMetric):
    """F-score of the shared character n-grams up to 6, against the right answer that is nearest."""

    name: Literal["chrf"] = "chrf"
    word_order: Literal[0, 1, 2] = Field(default=0, description="Longest n-gram of words that counts too; 2 is chrF++")
    lowercase: bool = Field(default=False, description="Whether case does not count")

    def counts(self, answer: Answer) -> tuple[float, ...]:
        """Of every order: the n-grams of the answer, of the reference, and those in both."""
        scorer = _scorer(self.word_order, self.lowercase)
        [counts] = scorer._extract_corpus_statistics([answer.text], [[right] for right in answer.references])
        return tuple(map(float, counts))

    def value(self, sums: FloatArray) -> FloatArray:
        """Sacrebleu's score of the corpus: precision and recall are averaged over the orders that both have."""
        import numpy as np

        answered, wanted, shared = (sums[..., part::3] for part in range(3))
        has = (answered > 0) & (wanted > 0)
        orders = np.maximum(has.sum(axis=-1), 1)
        precision = (has * shared / np.maximum(answered, 1)).sum(axis=-1) / orders
        recall = (has * shared / np.maximum(wanted, 1)).sum(axis=-1) / orders
        below = _BETA**2 * precision + recall
        return (1 + _BETA**2) * precision * recall / np.where(below > 0, below, 1)


@cache
def _scorer(word_order: int, lowercase: bool) -> CHRF:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=word_order, lowercase=lowercase, beta=_BETA)


METRIC = Chrf
