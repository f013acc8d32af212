"""Test rows that cannot be answered right are told of before anything is trained."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from malora_cli.data.encoding import Encoder
from malora_cli.data.tasks import load_tasks
from train_runs import load, workplace


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path) -> Path:
    return workplace(tmp_path, tiny_model)


def _told(place: Path, answers: list[object], *overrides: str) -> list[str]:
    """What loading says of task add whose test rows have these answers; the tokenizer's tokens are bytes."""
    rows = [{"question": f"what is {number}", "answer": answer} for number, answer in enumerate(answers)]
    (place.parent / "add.test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = load(place, *(f"mix.tasks.add.{override}" for override in overrides)).recipe
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        load_tasks(recipe.mix, Encoder(AutoTokenizer.from_pretrained(recipe.model.base)), max_length=512)
    return [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]


LONG = "have an answer longer than max_new_tokens 6, so none is generated whole"


@pytest.mark.parametrize(
    ("answers", "metric", "told"),
    [
        (["123456", "1"], "exact-match", None),  # its end need not be generated
        (["1234567", "1", "12345678"], "exact-match", f"2 of 3 test rows (row 1, 3) {LONG}"),
        (["1", "one", "2"], "last-number",
         "1 of 3 test rows (row 2) have an answer that last-number can read nothing from, so they can only score 0"),
        (["B", "heat"], "choice",
         "1 of 2 test rows (row 2) have an answer that choice can read nothing from, so they can only score 0"),
        (["one"], "exact-match", None),
        (["[1]", "{a}"], "json-f1",
         "1 of 2 test rows (row 2) have an answer that json-f1 can read nothing from, so they can only score 0"),
        (["a=1", "b", "c d"], "slot-f1",
         "1 of 3 test rows (row 3) have an answer that slot-f1 can read nothing from, so they can only score 0"),
        (["no", "yes"], "macro-f1", None),
        (["one", "a pair"], "rouge-2",
         "1 of 2 test rows (row 1) have an answer that rouge-2 can read nothing from, so they can only score 0"),
        (["1234567"] * 600, "rouge-l", "500 of 500 test rows that were looked at (row"),
    ],
)  # fmt: skip
def test_answers_out_of_reach(answers: list[object], metric: str, told: str | None, place: Path) -> None:
    lines = _told(place, answers, f"metric={metric}")
    assert len(lines) == (told is not None)
    assert told is None or lines[0].startswith(f"task 'add': {told}")


@pytest.mark.parametrize(("rows", "told"), [(60, True), (40, False)])
def test_training_rows_of_one_answer_are_told(rows: int, told: bool, place: Path) -> None:
    written = [{"question": f"why is {number}", "answer": "A"} for number in range(rows)]
    train = place.parent / "add.train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    lines = _told(place, ["1"])
    assert [line.partition(" (")[0] for line in lines] == told * [
        f"task 'add': all {rows} train rows have the answer 'A', so nothing else is learned"
    ]
    with train.open("a", encoding="utf-8") as file:
        file.write('{"question": "another", "answer": "B"}\n')
    assert _told(place, ["1"]) == []
