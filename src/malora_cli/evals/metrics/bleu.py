"""BLEU of all answers of a task together (Papineni et al., 2002), as `sacrebleu` counts it (arXiv 1804.08771)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from malora_cli.evals.metrics._base import Answer, Mark, Metric

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEUScore

    from malora_cli.results.statistics.arrays import FloatArray


class Bleu(Metric):
    """BLEU against all right answers; its n-grams and lengths are summed over the task before they are divided."""

    name: Literal["bleu"] = "bleu"
    tokenize: Literal["13a", "intl", "zh", "char", "none"] = Field(
        default="13a", description="Tokenizer of sacrebleu: 13a is its own default, zh is for Chinese, char for others"
    )
    lowercase: bool = Field(default=False, description="Whether case does not count")

    def marks(self, answers: Sequence[Answer]) -> list[Mark]:
        """The counts of each answer; a row's own score is sacrebleu's of a sentence, with the orders that it has."""
        from sacrebleu.metrics.bleu import BLEU

        scorer = BLEU(lowercase=self.lowercase, tokenize=self.tokenize, effective_order=True)
        return [_mark(scorer.sentence_score(answer.text, list(answer.references))) for answer in answers]

    def value(self, sums: FloatArray) -> FloatArray:
        """Sacrebleu's score of the corpus, smoothed as it does: the k-th order without a match has ``2^-k`` of one."""
        import numpy as np

        length, wanted = sums[..., 0], sums[..., 1]
        matches, ngrams = sums[..., 2:6], sums[..., 6:]
        none = matches == 0
        smoothed = np.where(none, 0.5 ** np.cumsum(none, axis=-1), matches)
        scored = ~none.all(axis=-1) & (ngrams[..., -1] > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            brevity = np.minimum(0.0, 1 - wanted / length)
            score = np.exp(brevity + np.log(smoothed / ngrams).mean(axis=-1))
        return np.where(scored, score, 0.0)


def _mark(score: BLEUScore) -> Mark:
    counts = (score.sys_len, score.ref_len, *score.counts, *score.totals)
    return Mark(min(score.score / 100, 1.0), tuple(map(float, counts)))


METRIC = Bleu
