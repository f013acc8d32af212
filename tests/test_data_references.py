"""Several right answers of one row: which are trained, and that any of them is right where answers are scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from malora_cli.data.columns import RowReader
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats import FORMATS
from malora_cli.data.formats._base import RowError
from malora_cli.data.splits import Split
from malora_cli.data.tasks import load_tasks
from malora_cli.errors import DataError
from train_runs import load, workplace

ROWS = [
    {"question": "Who?", "answer": ["Ada", "Lovelace"]},
    {"question": "Who then?", "answer": ["Bob"]},
    {"question": "Where?", "answer": "here"},
]
TOLD = (
    r"task 'copy': 1 train row has several right answers, of which the first is trained \(`references` of the task: "
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


ASKED = [{"role": "user", "content": "2 + 3?"}]
SPOKEN = [{"from": "human", "value": "2 + 3?"}]


@pytest.mark.parametrize(
    ("name", "row", "answer", "expected"),
    [
        ("messages", {"messages": ASKED, "chosen": "5"}, "chosen", ("5",)),
        ("messages", {"messages": ASKED, "chosen": ["5", "five", "5"]}, "chosen", ("5", "five")),
        ("messages", {"messages": ASKED, "chosen": {"role": "assistant", "content": "5"}}, "chosen", ("5",)),
        ("messages", {"messages": ASKED, "chosen": [*ASKED, {"role": "assistant", "content": "5"}]}, "chosen", ("5",)),
        ("messages", {"messages": ASKED, "chosen": 5}, "chosen", ("5",)),
        ("messages", {"messages": ASKED, "n": 2}, "{{ 'It is ' ~ (n + 3) }}", ("It is 5",)),
        ("sharegpt", {"conversations": SPOKEN, "chosen": {"from": "gpt", "value": "5"}}, "chosen", ("5",)),
        ("sharegpt", {"conversations": SPOKEN, "chosen": {"from": "gpt", "value": "5"}}, "chosen.value", ("5",)),
    ],
)
def test_an_answer_beside_the_conversation(
    name: str, row: dict[str, Any], answer: str, expected: tuple[str, ...]
) -> None:
    example = RowReader(name, FORMATS[name], {"answer": answer}, list(row), "rows.jsonl")(row)
    assert ([turn.role for turn in example.turns], example.references) == (["user", "assistant"], expected)


@pytest.mark.parametrize(
    ("messages", "chosen", "expected"),
    [
        (ASKED, None, "a conversation that ends with the user"),
        (ASKED, [], "an answer that is neither a text nor a message"),
        (ASKED, ASKED, "a conversation that ends with the user"),
        ([*ASKED, {"role": "assistant", "content": "5"}], "6", "a conversation that is answered, and another answer"),
    ],
)
def test_no_answer_beside_the_conversation(messages: Any, chosen: Any, expected: str) -> None:
    row = {"messages": messages, "chosen": chosen}
    with pytest.raises(RowError, match=expected):
        RowReader("messages", FORMATS["messages"], {"answer": "chosen"}, list(row), "rows.jsonl")(row)


def test_a_column_is_the_answer_only_where_the_mix_says_so() -> None:
    row = {"messages": [*ASKED, {"role": "assistant", "content": "5"}], "answer": "6"}
    assert RowReader("messages", FORMATS["messages"], {}, list(row), "rows.jsonl")(row).references == ("5",)
    with pytest.raises(DataError, match="column not found: 'It is 5' for 'answer'"):
        RowReader("messages", FORMATS["messages"], {"answer": "It is 5"}, list(row), "rows.jsonl")


def test_what_stands_before_several_answers_is_trained_once() -> None:
    messages = [*ASKED, {"role": "assistant", "content": "5"}, {"role": "user", "content": "In words?"}]
    row = {"messages": messages, "chosen": ["five", "Five."]}
    first, second = RowReader("messages", FORMATS["messages"], {"answer": "chosen"}, list(row), "x")(row).each()
    assert [turn.supervised for turn in first.turns if turn.role == "assistant"] == [True, True]
    assert [turn.supervised for turn in second.turns if turn.role == "assistant"] == [False, True]
    assert (first.references, second.references) == (("five", "Five."), ("Five.", "five"))
