"""Text of others made safe to show: what a terminal or a page would act on is replaced by what it shows.

Task names, rows, column names and paths come from files that somebody else may have written. Escape sequences in them
set titles, write the clipboard or clear the screen, and bidirectional controls make a line read as another one. Every
way to a terminal (`cli._terminal`) and to a report page (`reports.document`) goes through here.
"""

from __future__ import annotations

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_PICTURES = 0x2400  # of C0, in their order: U+241B is a picture of ESC
_BIDI_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # Unicode's Bidi_Control

# One for one, so that the width of a text and the spans of its styles stay.
_SHOWN = {
    **{code: chr(_PICTURES + code) for code in range(0x20)},
    0x7F: "\N{SYMBOL FOR DELETE}",
    **dict.fromkeys(range(0x80, 0xA0), _REPLACEMENT),
    **dict.fromkeys(map(ord, _BIDI_CONTROLS), _REPLACEMENT),
    **dict.fromkeys((0x2028, 0x2029), _REPLACEMENT),  # line ends to some
    **dict.fromkeys(range(0xD800, 0xE000), _REPLACEMENT),  # surrogates: bytes of file names that are no UTF-8
}
_SHOWN_IN_LINES = {code: shown for code, shown in _SHOWN.items() if code not in (ord("\n"), ord("\t"))}


def visible(text: str) -> str:
    """A text of one or more lines without characters that act: line ends and tabs stay, pictures stand for others."""
    return text if text.isprintable() else text.translate(_SHOWN_IN_LINES)


def one_line(text: str) -> str:
    """As `visible`, for what is to be one line: a name with a line end in it must not look like two."""
    return text if text.isprintable() else text.translate(_SHOWN)


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """``1, "task"`` as ``1 task``; ``3000, "task"`` as ``3,000 tasks``; the plural is given where it takes no s."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"
