"""JSON as it is written in a file: where its values begin and end, and the cells of its objects."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterator
from itertools import count
from typing import Any

from malora_cli.data.cells import Cells, of_json

# Only the kind of a value is of interest when a file is read, and int() refuses thousands of digits.
_value_at: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder(parse_int=float).scan_once  # type: ignore[attr-defined]
_past_space = re.compile(r"[ \t\r\n]*").match
_colon = re.compile(r"[ \t\r\n]*:[ \t\r\n]*").match
_separator = re.compile(r"[ \t\r\n]*([],}])[ \t\r\n]*").match


class LineError(Exception):
    """Something wrong in a file.

    Args:
        line: Its line, from 1.
        what: What is wrong with it, to stand behind the line.
        fix: What to do about it.
    """

    def __init__(self, line: int, what: str, fix: str = "Mend or remove the line.") -> None:
        self.line, self.what, self.fix = line, what, fix
        super().__init__(f"line {line} {what}")


class PlaceError(ValueError):
    """Something wrong with JSON that is valid.

    Args:
        what: What is wrong, to stand behind its line.
        text: What it stands in.
        at: Where it begins.
    """

    def __init__(self, what: str, text: str, at: int) -> None:
        self.lineno = text.count("\n", 0, at) + 1
        super().__init__(what)


class ShapeError(Exception):
    """A file is valid and holds something other than rows.

    Args:
        what: What it holds, to stand behind its name.
        fix: How to say where the rows are.
    """

    def __init__(self, what: str, fix: str) -> None:
        self.what, self.fix = what, fix
        super().__init__(what)


def past_space(text: str, at: int) -> int:
    """Where something other than white space stands, from a place on."""
    found = _past_space(text, at)
    assert found is not None  # it matches nothing as well
    return found.end()


def value_at(text: str, at: int) -> tuple[Any, int]:
    """A JSON value, and where it ends.

    Raises:
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    try:
        return _value_at(text, at)
    except StopIteration as stop:
        raise json.JSONDecodeError("Expecting value", text, stop.value) from None


def end_of(text: str, at: int, levels: int = 0) -> int:
    """Where a JSON value ends.

    Args:
        text: What it stands in.
        at: Where it begins.
        levels: Down to where lists and objects are gone through part by part, so as not to be in memory as a whole.

    Raises:
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    if not levels or text[at : at + 1] not in ("[", "{"):
        return value_at(text, at)[1]
    end = at + 1
    for part in parts_at(text, at, levels - 1):
        end = part[2]
    return past_space(text, end) + 1


def parts_at(text: str, at: int, levels: int = 0) -> Iterator[tuple[str | int, int, int]]:
    """The items of a JSON list, or the members of an object: number or name of each, where it begins and ends.

    Args:
        text: What it stands in.
        at: Where it begins.
        levels: As in `end_of`, for each of the parts.

    Raises:
        As `end_of`.
    """
    in_list, names = text[at] == "[", set[str | int]()
    at = past_space(text, at + 1)
    if text[at : at + 1] == ("]" if in_list else "}"):
        return
    for number in count():
        name, at = (number, at) if in_list else _name_at(text, at, names)
        if not in_list:
            names.add(name)
        end = end_of(text, at, levels)
        yield name, at, end
        separator, following = _separator_at(text, end, "]" if in_list else "}")
        if separator != ",":
            return
        at = following


def object_at(text: str, at: int) -> tuple[Cells, int]:
    """The cells of a JSON object, and where what follows on it begins.

    Raises:
        ValueError: There is none: a `json.JSONDecodeError` where it is not JSON, else a `PlaceError`.
        RecursionError: It is nested too deeply.
    """
    if text[at : at + 1] != "{":
        value_at(text, at)  # which says where it is not JSON
        raise PlaceError("is not a JSON object", text, at)
    cells: Cells = {}
    at = past_space(text, at + 1)
    if text[at : at + 1] == "}":
        return cells, past_space(text, at + 1)
    try:
        while True:
            name, start = _name_at(text, at, cells)
            value, at = _value_at(text, start)
            cells[name] = of_json(value, text[start:at])
            separator, at = _separator_at(text, at, "}")
            if separator == "}":
                return cells, at
    except StopIteration as stop:
        raise json.JSONDecodeError("Expecting value", text, stop.value) from None


def cell_at(text: str, at: int) -> str | None:
    """The cell of a JSON value."""
    value, end = value_at(text, at)
    return of_json(value, text[at:end])


def _name_at(text: str, at: int, known: Container[str | int]) -> tuple[str, int]:
    """The name of a member of an object, and where its value begins."""
    if text[at : at + 1] != '"':
        raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
    start, (name, at) = at, _value_at(text, at)
    if name in known:
        raise PlaceError(f"names '{name}' twice", text, start)
    colon = _colon(text, at)
    if colon is None:
        raise json.JSONDecodeError("Expecting ':' delimiter", text, past_space(text, at))
    return name, colon.end()


def _separator_at(text: str, at: int, last: str) -> tuple[str, int]:
    """The comma behind a part, or what ends the whole; and where what follows on it begins."""
    found = _separator(text, at)
    if found is None or found[1] not in (",", last):
        raise json.JSONDecodeError("Expecting ',' delimiter", text, past_space(text, at))
    return found[1], found.end()


def fault_of(error: Exception, line: int) -> LineError:
    """What is wrong with JSON that begins in a line."""
    if isinstance(error, json.JSONDecodeError):
        what = f"is not valid JSON ({error.msg.removesuffix(' at')} at column {error.colno})"
        return LineError(line + error.lineno - 1, what)
    if isinstance(error, PlaceError):
        return LineError(line + error.lineno - 1, str(error))
    return LineError(line, "is nested too deeply")
