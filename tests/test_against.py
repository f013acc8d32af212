"""The answers of another evaluation: which row is whose, and which answers a metric can score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from malora_cli.data.batch import TrainExample
from malora_cli.errors import RunError
from malora_cli.evals.against import OtherAnswers, answers_in
from malora_cli.evals.metrics import METRICS
from malora_cli.evals.questions import Question
from malora_cli.results import EvalResult, Scores, TaskEval

CHOICES = {"choices": ["red", "blue"]}


def question(row: int, prompt: str, reference: str, facts: dict[str, Any] = CHOICES) -> Question:
    return Question(row, prompt, [reference], facts, TrainExample([], [], 0), [])


def line(row: int, prompt: str, reference: str, **answer: Any) -> dict[str, Any]:
    return {"task": "t", "row": row, "prompt": prompt, "reference": reference, "tokens": 2, **answer}


#: Two rows with one prompt that have different right answers.
ASKED = [question(0, "colour?", "red"), question(1, "colour?", "blue")]
WEIGHED = [
    line(0, "colour?", "red", adapter="blue", adapter_nats=1.0, adapter_choices=[1.0, 0.5]),
    line(1, "colour?", "blue", adapter="blue", adapter_nats=0.5, adapter_choices=[1.0, 0.5]),
]


def found(folder: Path, lines: list[dict[str, Any]], theirs: str, ours: str) -> OtherAnswers:
    """What is read of an evaluation by their metric where ours is wanted."""
    scores = TaskEval(domain="d", metric=theirs, rows=2, model=Scores(score=0.5))
    file = folder / "e.json"
    EvalResult(run="r", created="", step=1, limit=None, seconds=1, tasks={"t": scores}).save(file)
    text = "".join(f"{json.dumps(one)}\n" for one in lines)
    (folder / "e.predictions.jsonl").write_text(text, encoding="utf-8")
    return answers_in(file, {"t": ASKED}, {"t": METRICS[ours]()})


@pytest.mark.parametrize("backwards", [False, True])
def test_rows_with_one_prompt_are_told_apart_by_their_right_answers(backwards: bool, tmp_path: Path) -> None:
    answers, nats = found(tmp_path, WEIGHED[::-1] if backwards else WEIGHED, "accuracy", "likelihood").of("t")
    assert [answer.reference_nats for answer in answers] == [1.0, 0.5]
    assert nats == [(1.0, 2), (0.5, 2)]


def test_answers_that_were_generated_go_with_any_right_answer(tmp_path: Path) -> None:
    lines = [line(7, "colour?", "green", adapter="blue", adapter_nats=3.0)]
    answers, nats = found(tmp_path, lines, "exact-match", "token-f1").of("t")
    assert [answer.text for answer in answers] == ["blue", "blue"]
    assert nats == [], "they are of another right answer"


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize(
    ("change", "theirs", "ours"),
    [
        (without("adapter_nats"), "accuracy", "likelihood"),  # of an older version
        (without("adapter_choices"), "exact-match", "accuracy"),
        (lambda row: row, "accuracy", "exact-match"),
        (lambda row: row, "likelihood", "exact-match"),
        (lambda row: row, "accuracy", "accuracy-pmi"),
        (lambda row: {**row, "adapter_choices": [1.0, 2.0, 3.0]}, "accuracy", "accuracy"),
        (lambda row: {**row, "adapter": "green"}, "accuracy", "accuracy"),
        (without("adapter"), "accuracy", "accuracy"),
    ],
)
def test_what_a_metric_cannot_score_is_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]], theirs: str, ours: str, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=rf"e\.json: it has no answers to task 't' that {ours} can score\. Evaluate"):
        found(tmp_path, [change(row) for row in WEIGHED], theirs, ours)
