"""Whether what a command prints by ``--json`` has the keys that docs/reference/json.md says, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_FILE = yaml.safe_load((Path(__file__).parent / "json_output.yaml").read_text(encoding="utf-8"))
DOCUMENTS: dict[str, dict[str, str]] = _FILE["documents"]
#: A step of a documented key: a name of its own, any name, or each part of a list.
_STEP = re.compile(r"\w+|\*|\[\]")


def assert_documented(command: str, told: dict[str, Any]) -> None:
    """Compare a document that a command printed with what is said of it."""
    assert told["schema"] == 1
    body = {key: value for key, value in told.items() if key != "schema"}
    keys = [_STEP.findall(key) for key in DOCUMENTS[command]]
    for path in _paths(body):
        assert any(_fits(path, key) for key in keys), f"{command} prints {path}, which is not documented"
    for key, name in zip(keys, DOCUMENTS[command], strict=True):
        assert name in _FILE["sometimes"] or _has(body, key), f"{command} does not print {name}"


def _paths(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where values lie that have no parts."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _paths(inner, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from _paths(inner, (*path, "[]"))
    else:
        yield path


def _fits(path: tuple[str, ...], key: list[str]) -> bool:
    if key[-1] == "*":
        key = key[:-1]
        path = path[: len(key)]
    nothing_below = len(path) < len(key)  # null, or nothing in a list or mapping
    return (nothing_below or len(path) == len(key)) and all(
        step in ("NAME", there) for there, step in zip(path, key, strict=False)
    )


def _has(value: Any, key: list[str]) -> bool:
    for number, step in enumerate(key):
        if value is None or value in ({}, []) or step == "*":
            return True
        if step == "[]":
            return all(_has(inner, key[number + 1 :]) for inner in value)
        if step == "NAME":
            return all(_has(inner, key[number + 1 :]) for inner in value.values())
        if step not in value:
            return False
        value = value[step]
    return True
