"""The records inside what a JSON file holds: rows that lie in lists within lists, under keys or side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from malora_cli.data.cells import Cells, of_text
from malora_cli.data.json_text import PlaceError, ShapeError, cell_at, object_at, parts_at
from malora_cli.registry import did_you_mean

#: The column of the key that a record, or what it lies in, stands under.
KEY = "_key"
#: The column of a record that is a plain value, where its path names none.
VALUE = "_value"
EVERY = "*"

#: Where records are: names, positions and wildcards.
Records = tuple[str, ...]


def records_of(given: str | Sequence[str] | None) -> list[Records]:
    """``"data.*.qas.*"``, or several such, as their parts."""
    return [tuple(text.split(".")) for text in ([given] if isinstance(given, str) else given or ())]


@dataclass(frozen=True)
class _Place:
    """A place that a path leads to.

    Args:
        at: Where it begins in the text.
        around: Cells of what it lies in, the nearest of each name.
        trail: Which items and keys the wildcards stand for.
        in_item: Whether it lies in one of many.
    """

    at: int
    around: Cells
    trail: tuple[str | int, ...]
    in_item: bool

    def inside(self, part: str | int, at: int) -> _Place:
        """One of the many that lie here."""
        around = {**self.around, KEY: of_text(part)} if isinstance(part, str) else self.around
        return _Place(at, around, (*self.trail, part), in_item=True)


def records_at(text: str, at: int, paths: Sequence[Records], *, in_item: bool) -> Iterator[tuple[int, Cells]]:
    """The records of one JSON value: where each begins, and its cells.

    Fields of what a record lies in are its columns too, the nearest of each name; of objects that hold all of the
    records, only the plain values are. What the path leads through is left out.

    Args:
        text: JSON, known to be valid.
        at: Where the value begins.
        paths: Where the records are; several for lists that lie side by side, each a column of its last name.
        in_item: Whether the value is one of many.

    Raises:
        PlaceError: Two lists side by side are of different lengths, a plain value is in the way, or an object names
            something twice.
    """
    start = _Place(at, {}, (), in_item)
    if len(paths) == 1:
        for place in _ends(text, start, paths[0]):
            yield place.at, place.around | _own(text, place.at, _last_name(paths[0]))
        return
    for places in zip_longest(*(_ends(text, start, path) for path in paths)):
        first = next(place for place in places if place is not None)
        if any(place is None or place.trail != first.trail for place in places):
            what = f"has lists of different lengths as {' and '.join('.'.join(path) for path in paths)}"
            raise PlaceError(what, text, first.at)
        around = {name: cell for name, cell in first.around.items() if all(name in place.around for place in places)}
        own = {_last_name(path): cell_at(text, place.at) for path, place in zip(paths, places, strict=True)}
        yield first.at, around | own


def _last_name(path: Records) -> str:
    names = [part for part in path if part != EVERY and not part.isdecimal()]
    return names[-1] if names else VALUE


def _own(text: str, at: int, name: str) -> Cells:
    """The cells of a record: fields of an object, positions of a list, or one of a plain value."""
    match text[at]:
        case "{":
            return object_at(text, at)[0]
        case "[":
            return {str(part): cell_at(text, start) for part, start, _ in parts_at(text, at)}
        case _:
            return {name: cell_at(text, at)}


def _ends(text: str, start: _Place, path: Records) -> Iterator[_Place]:
    """Where the records of a path are: of a list at its end, the items."""
    by_name = bool(path) and path[-1] != EVERY and not path[-1].isdecimal()
    for place in _places(text, start, path):
        if by_name and text[place.at] == "[":  # nobody means a list as one row
            yield from _places(text, place, (EVERY,))
        else:
            yield place


def _places(text: str, place: _Place, path: Records) -> Iterator[_Place]:
    """Where a path leads to from a place; nowhere from null."""
    if not path:
        yield place
        return
    first, rest = path[0], path[1:]
    if text[place.at] not in ("[", "{"):
        if text[place.at] != "n":
            raise PlaceError(f"has a plain value where '{first}' of `records` looks for more", text, place.at)
        return
    if first == EVERY:
        for part, at, _ in parts_at(text, place.at):
            yield from _places(text, place.inside(part, at), rest)
    elif text[place.at] == "{":
        yield from _member(text, place, first, rest)
    elif first.isdecimal():
        for part, at, _ in parts_at(text, place.at):
            if part == int(first):
                yield from _places(text, replace(place, at=at), rest)
    else:  # a name goes for every item of a list
        for part, at, _ in parts_at(text, place.at):
            yield from _places(text, place.inside(part, at), path)


def _member(text: str, place: _Place, name: str, rest: Records) -> Iterator[_Place]:
    starts = {str(part): at for part, at, _ in parts_at(text, place.at, levels=0 if place.in_item else 1)}
    if name not in starts:
        return
    beside = {other: at for other, at in starts.items() if other != name}
    if not place.in_item:
        beside = {other: at for other, at in beside.items() if text[at] not in ("[", "{")}
    around = place.around | {other: cell_at(text, at) for other, at in beside.items()}
    yield from _places(text, replace(place, at=starts[name], around=around), rest)


def why_nothing(text: str, at: int, path: Records) -> ShapeError:
    """Why a path leads to no record of a value."""
    start = _Place(at, {}, (), in_item=True)
    found = [next(_places(text, start, path[:length]), None) for length in range(len(path))]
    reached, place = max((length, place) for length, place in enumerate(found) if place is not None)
    missed, here = path[reached], f"at '{'.'.join(path[:reached])}'" if reached else "in it"
    inner = place.at
    if text[inner] == "[" and missed != EVERY and not missed.isdecimal():
        inner = next((start for _, start, _ in parts_at(text, inner)), inner)
    names = [str(part) for part, _, _ in parts_at(text, inner)] if text[inner] == "{" else []
    known = f"no '{missed}' {here}; {did_you_mean(missed, names)}" if names else f"nothing {here}"
    return ShapeError(f"no records found at '{'.'.join(path)}': {known}", "Mend `records` of the source.")
