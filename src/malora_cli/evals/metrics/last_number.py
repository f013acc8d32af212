"""The last number of an answer against that of the reference, as GSM8K is scored: 1 where they are equal.

Thousands may have commas; 7, 7.0 and $7 are equal. An answer without a number scores 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from malora_cli.evals.metrics._base import Metric

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def _last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def _score(prediction: str, reference: str) -> float:
    number = _last_number(prediction)
    return float(number is not None and number == _last_number(reference))


def _scores(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    return [_score(p, r) for p, r in zip(predictions, references, strict=True)]


METRIC = Metric(_scores)
