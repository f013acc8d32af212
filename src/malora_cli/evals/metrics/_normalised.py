"""Text without what a comparison of answers is to be blind for, as SQuAD's (Rajpurkar et al., arXiv 1606.05250)."""

from __future__ import annotations

import string

import regex

#: All that Unicode calls punctuation, and ASCII's symbols, which SQuAD counts as such.
_PUNCTUATION = regex.compile(rf"[\p{{P}}{regex.escape(string.punctuation)}]")
_ARTICLES = regex.compile(r"\b(?:a|an|the)\b", regex.IGNORECASE)


def without_punctuation(text: str) -> str:
    """``"the U.S."`` as ``"the US"``."""
    return str(_PUNCTUATION.sub("", text))


def without_articles(text: str) -> str:
    """A text without the English articles."""
    return str(_ARTICLES.sub(" ", text))
