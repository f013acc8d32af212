"""Several right answers of one row: which are trained, and that any of them is right where answers are scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from malora_cli.data.encoding import Encoder
from malora_cli.data.splits import Split
from malora_cli.data.tasks import load_tasks
from train_runs import load, workplace

ROWS = [
    {"question": "Who?", "answer": ["Ada", "Lovelace"]},
    {"question": "Who then?", "answer": ["Bob"]},
    {"question": "Where?", "answer": "here"},
]
TOLD = (
    r"task 'copy': 1 train rows have several right answers, of which the first is trained \(`references` of the task: "
    r"first or all; .* \(row 1\)"
)


def splits(folder: Path, tiny_model: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[Split, Split]:
    recipe = workplace(folder, tiny_model)
    for part in ("train", "test"):
        (folder / f"copy.{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    overrides = [f"mix.tasks.copy.{name}={json.dumps(value)}" for name, value in settings.items()]
    encoder = Encoder(AutoTokenizer.from_pretrained(tiny_model))
    tasks = load_tasks(load(recipe, *overrides).recipe.mix, encoder, max_length=512)
    return tasks[0].train, tasks[0].test


def answers(split: Split, tiny_model: Path) -> list[str]:
    """What is supervised of each row."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    examples = split.examples(range(len(split)), 0)
    return [
        " ".join(tokenizer.decode(example.input_ids[first : last - 1]) for first, last in example.spans)
        for example in examples
    ]


@pytest.mark.filterwarnings("ignore:task 'copy'. 3 of 3 test rows are also training rows")
@pytest.mark.parametrize(
    ("setting", "trained", "right"),
    [
        ("first", ["Ada", "Bob", "here"], [["Ada", "Lovelace"], ["Bob"], ["here"]]),
        ("all", ["Ada", "Lovelace", "Bob", "here"], [["Ada", "Lovelace"], ["Lovelace", "Ada"], ["Bob"], ["here"]]),
    ],
)
def test_which_right_answers_are_trained(
    setting: str, trained: list[str], right: list[list[str]], tmp_path: Path, tiny_model: Path
) -> None:
    train, test = splits(tmp_path, tiny_model, ROWS, references=setting)
    assert answers(train, tiny_model) == trained
    assert list(train.rows["references"]) == right
    assert (train.read, train.cut, train.left_out) == (3, 0, ())
    assert list(test.rows["references"]) == [["Ada", "Lovelace"], ["Bob"], ["here"]]


@pytest.mark.filterwarnings("ignore:task 'copy'. 3 of 3 test rows are also training rows")
def test_it_is_told_that_the_first_is_trained(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.warns(UserWarning, match=TOLD):
        train, test = splits(tmp_path, tiny_model, ROWS)
    assert answers(train, tiny_model) == ["Ada", "Bob", "here"]
    assert test.remarks == ()
