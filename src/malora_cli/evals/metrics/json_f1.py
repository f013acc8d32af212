"""JSON F1: the values of an answer in JSON that stand at the same place as in the reference."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable
from typing import Any, Literal

from pydantic import Field

from malora_cli.evals.metrics._base import TextMetric

Pairs = Counter[tuple[Hashable, ...]]
_FENCED = re.compile(r"```\w*\s*\n(.*?)```", re.DOTALL)
_NONE = object()


class JsonF1(TextMetric):
    """F1 of the pairs of a path and the value at its end; what is not valid JSON, or JSON in a fence, is unread."""

    name: Literal["json-f1"] = "json-f1"
    ordered: bool = Field(default=True, description="Whether the order of lists counts")

    def score(self, prediction: str, reference: str) -> float:
        """Twice the pairs in both over all pairs."""
        answered, wanted = self._pairs(prediction), self._pairs(reference)
        if answered is None or wanted is None:
            return 0.0
        return 2 * (answered & wanted).total() / (answered.total() + wanted.total())

    def reads(self, reference: str) -> bool:
        """Whether it is valid JSON."""
        return _value(reference) is not _NONE

    def _pairs(self, text: str) -> Pairs | None:
        """Every value of a text in JSON that holds no others, with its path; None where it is not valid."""
        whole = _value(text)
        if whole is _NONE:
            return None
        found = Pairs()
        left: list[tuple[tuple[Hashable, ...], Any]] = [((), whole)]
        while left:  # a text may nest deeper than functions may
            path, value = left.pop()
            inner = self._inner(value)
            left += [((*path, key), one) for key, one in inner]
            if not inner:
                found[(*path, *_leaf(value))] += 1
        return found

    def _inner(self, value: Any) -> list[tuple[Hashable, Any]]:
        if isinstance(value, dict):
            return [(_composed(key), one) for key, one in value.items()]
        listed = value if isinstance(value, list) else []
        return [(position if self.ordered else None, one) for position, one in enumerate(listed)]


def _value(text: str) -> Any:
    """What a text holds as JSON, else what its first fence does, else `_NONE`."""
    for way in (text, *_FENCED.findall(text)[:1]):
        try:
            return json.loads(way, parse_constant=_refused)
        except (ValueError, RecursionError):
            continue
    return _NONE


def _leaf(value: Any) -> tuple[str, Hashable]:
    """A value that holds no others, and its kind: in Python true equals 1, and in JSON it does not."""
    if isinstance(value, list | dict):
        return type(value).__name__, None
    if isinstance(value, str):
        return "text", _composed(value)
    return ("number" if type(value) in (int, float) else type(value).__name__), value


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)  # as some tokenizers do, so that no answer could be written otherwise


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not valid JSON")


METRIC = JsonF1
