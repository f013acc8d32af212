"""The answers of another evaluation to the same questions, found by what was asked and never by their order."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malora_cli.data.columns import CHOICES
from malora_cli.errors import RunError
from malora_cli.evals.metrics import METRICS
from malora_cli.evals.metrics._base import Answer, Metric
from malora_cli.evals.questions import Question
from malora_cli.results import EvalResult, TaskEval
from malora_cli.results.predictions import MODELS, read_predictions


@dataclass(frozen=True)
class OtherAnswers:
    """What another evaluation's model answered to the questions of every task.

    Args:
        name: Of that run or model.
        answers: By task, in the order of its questions.
        nats: Nats and tokens of each first reference; empty where the rows have other references.
    """

    name: str
    answers: Mapping[str, list[Answer]]
    nats: Mapping[str, list[tuple[float, int]]]

    def of(self, task: str) -> tuple[list[Answer], list[tuple[float, int]]]:
        """Those of one task."""
        return self.answers[task], self.nats[task]


def answers_in(
    evaluation: Path, questions: Mapping[str, Sequence[Question]], metrics: Mapping[str, Metric]
) -> OtherAnswers:
    """Read another evaluation.

    Args:
        evaluation: Its ``.json`` file.
        questions: What is asked of every task.
        metrics: What every task is scored by.

    Raises:
        RunError: It cannot be read, or lacks rows; these are named. Or its answers are of another kind.
    """
    result, known = EvalResult.load(evaluation), defaultdict[tuple[str, str], list[dict[str, Any]]](list)
    for row in read_predictions(evaluation):
        known[row["task"], row["prompt"]].append(row)
    answers, nats = dict[str, list[Answer]](), dict[str, list[tuple[float, int]]]()
    for task, asked in questions.items():
        missing = [question.row + 1 for question in asked if (task, question.prompt) not in known]
        if missing:
            raise RunError(
                f"{len(missing):,} of the {len(asked):,} rows of task '{task}' are not in it, as row {missing[0]}",
                where=str(evaluation),
                fix="Evaluate both with the same tasks, mix and limit.",
            )
        rows = [_nearest(known[task, question.prompt], question) for question in asked]
        nats[task] = _nats(rows, asked)
        found = [_answer(row, question) for row, question in zip(rows, asked, strict=True)]
        if any(answer is None for answer in found) or not _goes_with(result.tasks.get(task), metrics[task], nats[task]):
            raise RunError(
                f"it has no answers to task '{task}' that {metrics[task]} can score",
                where=str(evaluation),
                fix="Evaluate both with the same metric, data and version of malora.",
            )
        answers[task] = [answer for answer in found if answer is not None]
    return OtherAnswers(result.run, answers, nats)


def _nearest(rows: Sequence[Mapping[str, Any]], question: Question) -> Mapping[str, Any]:
    """Of the rows with one prompt that with the same right answer, if there is one, and of these the same row."""
    return min(rows, key=lambda row: (not _same_reference(row, question), row.get("row") != question.row))


def _same_reference(row: Mapping[str, Any], question: Question) -> bool:
    references = row.get("references") or [row.get("reference")]
    return bool(references[0] == question.references[0])


def _answer(row: Mapping[str, Any], question: Question) -> Answer | None:
    """The answer that a row has; None where it has none, or to other choices."""
    which = _which(row)
    nats, choices = row.get(f"{which}_choices", ()), question.facts.get(CHOICES, ())
    if which is None or (nats and (len(nats) != len(choices) or row[which] not in choices)):
        return None
    return Answer(
        text=str(row[which]),
        references=question.references,
        prompt=question.prompt,
        facts=question.facts,
        nats=nats,
        prior_nats=row.get(f"{which}_priors", ()),
        reference_nats=row.get(f"{which}_nats", math.nan),
    )


def _goes_with(theirs: TaskEval | None, metric: Metric, nats: Sequence[tuple[float, int]]) -> bool:
    """Whether a metric can score the answers to a task that another metric scored."""
    if metric.kind == "likelihood":
        return bool(nats)
    if theirs is None:
        return False
    other = METRICS.get(theirs.metric.split(" ")[0])  # options stand behind its name
    if metric.needs_prior and not (other is not None and other.needs_prior):
        return False
    return metric.kind == (other.kind if other is not None else "generation")


def _which(row: Mapping[str, Any]) -> str | None:
    """The name under which the answers of its model stand."""
    return next((name for name in MODELS if name in row), None)


def _nats(rows: Sequence[Mapping[str, Any]], questions: Sequence[Question]) -> list[tuple[float, int]]:
    found = []
    for row, question in zip(rows, questions, strict=True):
        nats, tokens = row.get(f"{_which(row)}_nats"), row.get("tokens")
        if not (_same_reference(row, question) and isinstance(nats, int | float) and isinstance(tokens, int)):
            return []
        found.append((float(nats), tokens))
    return found
