"""JSON F1: the values of an answer in JSON that stand at the same place as in the reference."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any, Literal

from pydantic import Field

from malora_cli.evals.metrics._base import TextMetric

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

    def _pairs(self, text: str) -> Counter[tuple[Hashable, ...]] | None:
        """Every value of a text in JSON that holds no others, with its path; None where it is not valid."""
        found: Counter[tuple[Hashable, ...]] = Counter()
        left: list[tuple[tuple[Hashable, ...], Any]] = [((), _value(text))]
        while left:  # of its own, as a text may nest deeper than functions may
            path, value = left.pop()
            if value is _NONE:
                return None
            items = self._items(value)
            left += [((*path, key), inner) for key, inner in items]
            if not items:
                found[(*path, *_leaf(value))] += 1
        return found

    def _items(self, value: Any) -> list[tuple[Hashable, Any]]:
        if isinstance(value, dict):
            return list(value.items())
        inner: Iterable[Any] = value if isinstance(value, list) else ()
        return [(position if self.ordered else None, one) for position, one in enumerate(inner)]


def _value(text: str) -> Any:
    """What a text holds as JSON, else what its first fence does, else `_NONE`."""
    text = unicodedata.normalize("NFC", text)
    for way in (text, *_FENCED.findall(text)[:1]):
        try:
            return json.loads(way, parse_constant=_refused)
        except (ValueError, RecursionError):
            continue
    return _NONE


def _leaf(value: Any) -> tuple[str, Hashable]:
    """A value that holds no others; in Python true equals 1, and in JSON it does not."""
    if isinstance(value, list | dict):
        return type(value).__name__, None
    return ("number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__), value


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not valid JSON")


METRIC = JsonF1
