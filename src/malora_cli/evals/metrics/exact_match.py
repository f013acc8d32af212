"""Exact match: 1 for an answer that is the reference, white space around both aside."""

from __future__ import annotations

from collections.abc import Sequence

from malora_cli.evals.metrics._base import Metric


def _scores(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    return [float(p.strip() == r.strip()) for p, r in zip(predictions, references, strict=True)]


METRIC = Metric(_scores)
