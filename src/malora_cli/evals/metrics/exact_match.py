"""Exact match: 1 for an answer that is the reference, white space around both aside."""

from __future__ import annotations

import unicodedata
from typing import Literal

from pydantic import Field

from malora_cli.evals.metrics._base import TextMetric
from malora_cli.evals.metrics._normalised import without_articles, without_punctuation


class ExactMatch(TextMetric):
    """1 for an answer that is the reference, 0 for any other."""

    name: Literal["exact-match"] = "exact-match"
    ignore: tuple[Literal["case", "punctuation", "articles"], ...] = Field(
        default=(),
        description="What does not count, English articles among it; all three and runs of white space as in SQuAD",
    )

    def score(self, prediction: str, reference: str) -> float:
        """Whether they are the same."""
        return float(self._plain(prediction) == self._plain(reference))

    def _plain(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text)  # as some tokenizers do, so that no answer could be written otherwise
        if "case" in self.ignore:
            text = text.casefold()
        if "punctuation" in self.ignore:
            text = without_punctuation(text)
        if "articles" in self.ignore:
            text = without_articles(text)
        return " ".join(text.split()) if self.ignore else text.strip()


METRIC = ExactMatch
