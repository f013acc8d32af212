"""What a JSON file holds that is not a list of objects, and how to say where the rows are in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from malora_cli.data.json_text import ShapeError

_SHOWN = 4
_KINDS = {dict: "object", list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
_TRAINED = ("train", "training", "data", "rows", "examples")


def shape_of(value: Any, *, of: str = "the file") -> ShapeError:
    """What there is instead of rows.

    Args:
        value: What was read.
        of: What holds it.
    """
    paths = list(_paths(value))
    if not paths:
        return ShapeError(f"{of} holds {_described(value)}, not rows", "A row is a JSON object: one field a column.")
    deeper = f" (or deeper: {', '.join(paths[1:])})" if paths[1:] else ""
    return ShapeError(
        f"{of} holds {_described(value, inside=True)}, not rows",
        f"Say where the rows are in it, as in `records: {paths[0]}`{deeper}.",
    )


def _described(value: Any, *, inside: bool = False) -> str:
    if isinstance(value, dict):
        within = [f"'{name}': {_described(value[name])}" for name in _by_size(value)] if inside else list(value)
        shown = ", ".join(within[:_SHOWN])
        more = f" and {len(within) - _SHOWN} more" if len(within) > _SHOWN else ""
        return f"one object ({shown}{more})" if inside else f"an object of {shown}{more}"
    if isinstance(value, list):
        kind = _KINDS.get(type(value[0]), "value") if value else ""
        return f"a list of {len(value):,} {kind}{'s' * (len(value) > 1)}" if value else "an empty list"
    return "a plain value"


def _by_size(value: dict[str, Any]) -> list[str]:
    """The names of an object: of what rows are trained on, of lists of many items, of all others."""

    def rank(name: str) -> tuple[bool, bool, int]:
        inner = value[name]
        named = name in _TRAINED and isinstance(inner, list | dict)
        return (not _holds_rows(inner), not named, -len(inner) if isinstance(inner, list) else 0)

    return sorted(value, key=rank)


def _holds_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict | list)


def _paths(value: Any) -> Iterator[str]:
    """Where rows may be, the likeliest first; the others are deeper."""
    if isinstance(value, list):
        if value:
            yield '"*"'
        return
    if not isinstance(value, dict):
        return
    lists = [name for name in _by_size(value) if isinstance(value[name], list) and value[name]]
    if lists and _holds_rows(value[lists[0]]):
        yield from _deeper(lists[0], value[lists[0]])
    elif len(lists) > 1 and len({len(value[name]) for name in lists}) == 1:
        yield f"[{', '.join(f'{name}.*' for name in lists)}]"
    elif lists:
        yield f"{lists[0]}.*"
    else:
        yield from _paths_of_objects({name: inner for name, inner in value.items() if isinstance(inner, dict)})


def _paths_of_objects(objects: dict[str, dict[str, Any]]) -> Iterator[str]:
    if objects and all(_is_column(inner) for inner in objects.values()):
        yield f"[{', '.join(f'{name}.*' for name in objects)}]"
        return
    for name, inner in objects.items():
        if len(objects) == 1 and any(_holds_rows(rows) for rows in inner.values()):
            yield from (f"{name}.{path}" for path in _paths(inner))
            return
    if objects:
        yield '"*"'


def _is_column(values: dict[str, Any]) -> bool:
    """Whether an object has a value under each number of a row, as pandas writes a column."""
    return len(values) > 0 and list(values) == [str(number) for number in range(len(values))]


def _deeper(path: str, rows: list[Any]) -> Iterator[str]:
    """The items of a list, and the lists of objects within them."""
    yield f"{path}.*"
    first = rows[0]
    if isinstance(first, dict):
        name = next((name for name in first if _holds_rows(first[name]) and isinstance(first[name][0], dict)), None)
        if name is not None:
            yield from _deeper(f"{path}.*.{name}", first[name])
