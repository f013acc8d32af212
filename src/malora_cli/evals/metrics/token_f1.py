"""Token F1: the words that an answer and its reference share, as SQuAD counts them (arXiv 1606.05250)."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from malora_cli.evals.metrics._base import TextMetric
from malora_cli.evals.metrics._normalised import without_articles, without_punctuation
from malora_cli.words import apart, plain


class TokenF1(TextMetric):
    """F1 of the words in any order; case, punctuation and English articles do not count."""

    name: Literal["token-f1"] = "token-f1"

    def score(self, prediction: str, reference: str) -> float:
        """Twice the shared words over all words; 1 where neither has any."""
        answered, wanted = _tokens(prediction), _tokens(reference)
        if not answered or not wanted:
            return float(answered == wanted)
        return 2 * (answered & wanted).total() / (answered.total() + wanted.total())


def _tokens(text: str) -> Counter[str]:
    return Counter(apart(without_articles(without_punctuation(plain(text)))).split())


METRIC = TokenF1
