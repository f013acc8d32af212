"""Cells of text files: columns of texts, in which a JSON value that is no text lies as its own JSON, behind a mark.

So nothing is guessed of a column: whole numbers and fractions, dates and 2^64 stay what they are in their file, and
numbers remember how they are written there. `decoded` makes values of the cells where they are used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

#: What no text begins with, so that what begins with it is JSON.
_MARK = "\0"
#: Levels of lists and objects; Python's own limit is twice this, and some of it is used up by whoever reads a row.
DEEPEST = 500

Cells = dict[str, str | None]


def of_text(text: str) -> str:
    """The cell of a text."""
    return _MARK + json.dumps(text) if text.startswith(_MARK) else text


def of_json(value: Any, text: str) -> str | None:
    """The cell of a JSON value.

    Args:
        value: The value.
        text: How it is written.

    Raises:
        RecursionError: It is nested deeper than `DEEPEST`.
    """
    if isinstance(value, str):
        return of_text(value)
    if isinstance(value, list | dict) and text.count("[") + text.count("{") > DEEPEST and _depth(text) > DEEPEST:
        raise RecursionError
    return None if value is None else _MARK + text


def _depth(text: str) -> int:
    brackets = re.sub(r'"(?:[^"\\]|\\.)*"|[^][{}]', "", text)
    return max(accumulate(1 if bracket in "[{" else -1 for bracket in brackets))


def column(cells: Sequence[str | None]) -> pa.Array:
    """Cells as Arrow keeps them."""
    try:
        return pa.array(cells, pa.string())
    except UnicodeEncodeError:  # half a character, which JSON can name and no text can hold
        return pa.array([cell if is_unicode(cell) else _MARK + json.dumps(cell) for cell in cells], pa.string())


def column_of_texts(texts: Sequence[str | None]) -> pa.Array:
    """Texts, as a column of their cells."""
    found = column(texts)
    if not pc.any(pc.starts_with(found, _MARK)).as_py():
        return found
    return column([None if text is None else of_text(text) for text in texts])


def is_unicode(cell: str | None) -> bool:
    """Whether a text has no half of a character."""
    try:
        (cell or "").encode()
    except UnicodeEncodeError:
        return False
    return True


class Number(float):
    """A number that is written as it is in its file."""

    def __new__(cls, text: str) -> Number:
        """That of a text."""
        number = super().__new__(cls, text)
        number._text = text
        return number

    _text: str

    def __repr__(self) -> str:
        return self._text

    __str__ = __repr__

    def __reduce__(self) -> tuple[type[Number], tuple[str]]:
        return Number, (self._text,)


def _whole(text: str) -> int | Number:
    return Number(text) if text == "-0" or len(text) > 1000 else int(text)


#: The value of a JSON text, whose numbers remember how they are written.
json_value = json.JSONDecoder(parse_float=Number, parse_int=_whole, parse_constant=Number).decode


def decoded(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The values of some columns of cells."""
    return {name: [_decoded(cell) for cell in column] for name, column in batch.items()}


def _decoded(cell: Any) -> Any:
    return json_value(cell[1:]) if isinstance(cell, str) and cell.startswith(_MARK) else cell
