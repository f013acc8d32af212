"""The words of a text in any script, for whatever compares texts."""

from __future__ import annotations

import unicodedata

import regex

#: A character of a script that is written without spaces; `regex` and Arrow's RE2 both take it.
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"

_UNSPACED = regex.compile(rf"{UNSPACED}\p{{M}}*")
_WORD = regex.compile(r"[^\W\p{Pc}]+")  # combining marks are part of \w


def apart(text: str) -> str:
    """A text with spaces around every character of a script that has none; marks stay with what they are on."""
    return text if text.isascii() else str(_UNSPACED.sub(r" \g<0> ", text))


def plain(text: str) -> str:
    """A text in lower case, without differences of form alone, such as full width."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).lower()


def words(text: str) -> list[str]:
    """Words of letters and digits, `plain`; of a script without spaces, every character is one."""
    return list(_WORD.findall(apart(plain(text))))
