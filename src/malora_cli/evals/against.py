"""The answers of another evaluation to the same questions, found by what was asked and never by their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malora_cli.errors import RunError
from malora_cli.evals.metrics._base import Answer
from malora_cli.evals.questions import Question
from malora_cli.results import EvalResult
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


def answers_in(evaluation: Path, questions: Mapping[str, Sequence[Question]]) -> OtherAnswers:
    """Read another evaluation.

    Args:
        evaluation: Its ``.json`` file.
        questions: What is asked of every task.

    Raises:
        RunError: It cannot be read, or lacks rows; these are named.
    """
    name = EvalResult.load(evaluation).run
    known = {(row["task"], row["prompt"]): row for row in read_predictions(evaluation)}
    answers, nats = dict[str, list[Answer]](), dict[str, list[tuple[float, int]]]()
    for task, asked in questions.items():
        missing = [question.row + 1 for question in asked if (task, question.prompt) not in known]
        if missing:
            raise RunError(
                f"{len(missing):,} of the {len(asked):,} rows of task '{task}' are not in it, as row {missing[0]}",
                where=str(evaluation),
                fix="Evaluate both with the same tasks, mix and limit.",
            )
        rows = [known[task, question.prompt] for question in asked]
        answers[task] = [_answer(row, question, evaluation) for row, question in zip(rows, asked, strict=True)]
        nats[task] = _nats(rows, asked)
    return OtherAnswers(name, answers, nats)


def _answer(row: Mapping[str, Any], question: Question, evaluation: Path) -> Answer:
    which = _which(row)
    if which is None:
        raise RunError("its rows have no answers of a model", where=str(evaluation), fix="Evaluate again.")
    return Answer(
        text=str(row[which]),
        references=question.references,
        prompt=question.prompt,
        facts=question.facts,
        nats=row.get(f"{which}_choices", ()),
        prior_nats=row.get(f"{which}_priors", ()),
        reference_nats=float(row.get(f"{which}_nats", 0.0)),
    )


def _which(row: Mapping[str, Any]) -> str | None:
    """The name under which the answers of its model stand."""
    return next((name for name in MODELS if name in row), None)


def _nats(rows: Sequence[Mapping[str, Any]], questions: Sequence[Question]) -> list[tuple[float, int]]:
    found = []
    for row, question in zip(rows, questions, strict=True):
        nats, tokens = row.get(f"{_which(row)}_nats"), row.get("tokens")
        same = row.get("reference", row.get("references", [None])[0]) == question.references[0]
        if not same or not isinstance(nats, int | float) or not isinstance(tokens, int):
            return []
        found.append((float(nats), tokens))
    return found
