"""Metrics of ours as those of the `evaluate` package, so that scores can be computed outside."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import evaluate
from datasets import Features, Value
from datasets import Sequence as Listed

from malora_cli.evals.metrics._base import Answer, Metric
from malora_cli.recipe.settings import Kind

_TEXT, _NATS = Value("string"), Value("float64")
#: What a prediction is: an answer, the nats of every choice, or those of the right answer.
_PREDICTIONS: dict[Kind, Any] = {"generation": _TEXT, "choices": Listed(_NATS), "likelihood": _NATS}


class AsEvaluate(evaluate.Metric):
    """A metric of ours; a reference is a right answer or a list of them, and its ``needs`` are columns of their own.

    What it ``wants`` may be given likewise, a value for each row.

    Args:
        metric: With its options.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        columns = ("references", *self.metric.needs)
        ways = product((Listed(_TEXT), _TEXT), repeat=len(columns))  # one text may stand for a list of one
        predictions = {"predictions": _PREDICTIONS[self.metric.kind]}
        if self.metric.needs_prior:
            predictions["prior_nats"] = Listed(_NATS)
        return evaluate.MetricInfo(
            description=type(self.metric).__doc__,
            citation="",
            features=[Features(predictions | dict(zip(columns, way, strict=True))) for way in ways],
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any], **facts: Sequence[Any]) -> dict[str, Any]:
        """The score, from 0 to 1, and the share of answers that could not be read."""
        rows = [dict(zip(facts, values, strict=True)) for values in zip(*facts.values(), strict=True)]
        answers = [
            self._answer(prediction, [rights] if isinstance(rights, str) else rights, row)
            for prediction, rights, row in zip(predictions, references, rows or [{}] * len(references), strict=True)
        ]
        marks = self.metric.marks(answers)
        score = self.metric.measured(marks).score
        return {self.metric.name: score, "unread": sum(mark.unread for mark in marks) / len(marks)}

    def _answer(self, prediction: Any, references: Sequence[str], facts: dict[str, Any]) -> Answer:
        match self.metric.kind:
            case "generation":
                return Answer(prediction, references, facts=facts)
            case "choices":
                prior = facts.pop("prior_nats", ())
                return Answer("", references, facts=facts, nats=prediction, prior_nats=prior)
            case "likelihood":
                return Answer("", references, facts=facts, reference_nats=prediction)
