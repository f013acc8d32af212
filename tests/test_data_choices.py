"""Multiple choice as data have it: how choices are given, how the right one is named, and from where it is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import AutoTokenizer

from malora_cli.data.columns import RowReader
from malora_cli.data.encode_rows import Encoding
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats import FORMATS
from malora_cli.data.formats._base import Example, RowError
from malora_cli.data.sources import load_rows
from malora_cli.data.splits import Split
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings

FROM_1 = 'Write `answer: "{{ COLUMN | int - 1 }}"`.'
FOUR = ["cold", "heat", "salt", "time"]


def read(choices: Any, answer: Any, columns: dict[str, Any] | None = None, **cells: Any) -> Example:
    row = {"question": "What melts ice?", "choices": choices, "answer": answer, **cells}
    return RowReader("multiple-choice", FORMATS["multiple-choice"], columns or {}, list(row), "rows.jsonl")(row)


@pytest.mark.parametrize(
    ("choices", "answer", "expected"),
    [
        (FOUR, 2, "C"),
        (FOUR, 2.0, "C"),
        (FOUR, "2", "C"),
        (FOUR, "2.0", "C"),
        (FOUR, "C", "C"),
        (FOUR, "c", "C"),
        (FOUR, " salt ", "C"),
        (["b", "a"], "a", "B"),  # the text, not the letter
        (["2", "1", "0"], 2, "C"),
        ([3, 4.5, True], "4.5", "B"),
        ([*FOUR, None], 3, "D"),
        ({"text": FOUR, "label": ["1", "2", "3", "4"]}, "3", "C"),
        ({"text": FOUR, "label": ["1", "2", "3", "4"]}, 3, "C"),
        ({"text": FOUR, "label": [1, 2, 3, 4]}, 3, "C"),
        ({"text": FOUR, "label": ["A", "B", "C", "D"]}, 2, "C"),
        ([{"label": "1", "text": "cold"}, {"label": "2", "text": "heat"}], "1", "A"),
        ([{"text": "cold"}, {"text": "heat"}], 1, "B"),
        ({"A": "cold", "B": "heat", "C": "salt"}, "B", "B"),
        ({"A": "cold", "B": "heat", "C": "salt", "D": None}, 2, "C"),
        ({"opa": "cold", "opb": "heat"}, "opb", "B"),
        ({"1": "cold", "2": "heat"}, 1, "A"),
        (FOUR, "(C)", "C"),
        (FOUR, "b)", "B"),
        (FOUR, "B. heat", "B"),
        (["(B) x", "(A) y"], "(B) x", "A"),  # the text
    ],
)
def test_the_right_choice(choices: Any, answer: Any, expected: str) -> None:
    example = read(choices, answer)
    assert example.completion == expected
    assert example.prompt.splitlines()[2].startswith("A. ")
    assert "None" not in example.prompt


@pytest.mark.parametrize(
    ("choices", "answer", "expected"),
    [
        (FOUR, 4, "the number of its choices as the answer, and choices are counted from 0 (if from 1, `answer: "),
        (FOUR, 5, "the answer '5', which is not one of its 4 choices"),
        (FOUR, 1.5, "the answer '1.5', which is not one"),
        (FOUR, "", "the answer '', which is not one"),
        ({"A": "cold", "B": None, "C": "salt"}, 2, "a choice without text"),
        ("cold; heat", 0, "choices that are one text; part it, as in `choices: \"{{ COLUMN.split(';') }}\"`"),
        ('["cold", "heat"]', 0, 'choices that are one text; part it, as in `choices: "{{ COLUMN | fromjson }}"`'),
        (FOUR, "(E)", "the answer '(E)', which is not one of its 4 choices"),
        (FOUR, "B. cold", "the answer 'B. cold', which is not one"),
        ({}, 0, "no list of 2 to 26 choices"),
        (["x"] * 27, 0, "no list of 2 to 26 choices"),
        ({"text": FOUR, "label": ["A"] * 5}, 0, "not as many labels as choices"),
    ],
)
def test_no_choice(choices: Any, answer: Any, expected: str) -> None:
    with pytest.raises(RowError) as caught:
        read(choices, answer)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("columns", "cells", "expected"),
    [
        ({"answer": "{{ answer | int - 1 }}"}, {}, "B"),
        ({"answer": "{{ 'heat' if answer == 2 else 'cold' }}"}, {}, "B"),
        ({"choices": "{{ joined.split('; ') }}", "answer": "{{ answer - 1 }}"}, {"joined": "cold; heat"}, "B"),
        ({"choices": "{{ ['no', 'yes'] }}", "answer": "{{ 'yes' if flag else 'no' }}"}, {"flag": True}, "B"),
        ({"choices": "{{ choices[:2] }}", "answer": "{{ answer - 1 }}"}, {}, "B"),
        ({"choices": ["{{ one | upper }}", "two"], "answer": "{{ answer - 1 }}"}, {"one": "cold", "two": "heat"}, "B"),
        ({"choices": "deep.0.options", "answer": "key"}, {"deep": [{"options": FOUR}], "key": "B"}, "B"),
    ],
)
def test_templates_make_choices_and_answers(columns: dict[str, Any], cells: dict[str, Any], expected: str) -> None:
    assert read(FOUR, 2, columns, **cells).completion == expected


@pytest.mark.parametrize(
    ("columns", "last"),
    [
        ({}, "Answer with the letter alone."),
        ({"instruction": "Reply with one letter."}, "Reply with one letter."),
        ({"instruction": "how"}, "So?"),
        ({"instruction": "{{ how }} One of {{ choices | length }}."}, "So? One of 4."),
        ({"instruction": "{{ '' }}"}, "D. time"),
    ],
)
def test_the_last_line_can_be_changed(columns: dict[str, Any], last: str) -> None:
    example = read(FOUR, 2, columns, how="So?", instruction="a column of the data that nobody mapped")
    assert example.prompt.splitlines()[-1] == last


@pytest.mark.parametrize(
    ("names", "answer", "expected"),
    [
        (["a", "b", "c", "d"], 2, "C"),
        (["0", "1", "2", "3"], 2, "C"),
        (["1", "2", "3", "4"], 2, "C"),
        (["heat", "cold", "time", "salt"], 3, "C"),
    ],
)
def test_classes_as_answers(tmp_path: Path, names: list[str], answer: int, expected: str) -> None:
    features = Features(
        {"question": Value("string"), "choices": List(Value("string")), "answer": ClassLabel(names=names)}
    )
    rows = {"question": ["?"], "choices": [FOUR], "answer": [answer]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    found = load_rows(SourceSettings(path=str(tmp_path / "rows.parquet")), split="train")
    reader = RowReader("multiple-choice", FORMATS["multiple-choice"], {}, found.dataset.column_names, "rows")
    assert reader(found.dataset[0]).completion == expected


def split_of(
    answers: list[Any], folder: Path, tiny_model: Path, columns: dict[str, Any], choices: list[str] = FOUR
) -> Split:
    rows = [{"question": "What melts ice?", "choices": choices, "answer": answer} for answer in answers]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = load_rows(SourceSettings(path=str(folder / "rows.jsonl")), split="train")
    reader = RowReader("multiple-choice", FORMATS["multiple-choice"], columns, found.dataset.column_names, found.source)
    encoder = Encoder(AutoTokenizer.from_pretrained(tiny_model))
    return Encoding(reader, encoder, None, 1024, "error", "drop").split(found)


def test_answers_that_are_counted_from_1_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    """Dropping the rows that tell would leave the others, each with the choice behind the right one."""
    with pytest.raises(DataError) as caught:
        split_of([1, 2, 3, 4], tmp_path, tiny_model, {})
    assert str(caught.value) == (
        f"{tmp_path / 'rows.jsonl'}: answers reach the number of choices and are never 0, so they are counted from 1. "
        + FROM_1
    )
    said = split_of([1, 2, 3, 4], tmp_path, tiny_model, {"answer": "{{ answer | int - 1 }}"})
    assert [references[0] for references in said.rows["references"]] == ["A", "B", "C", "D"]
    stray = split_of([0, 2, 4], tmp_path, tiny_model, {})
    assert (len(stray), stray.left_out[0].rows) == (2, 1)


def test_numbers_that_are_positions_and_texts(tmp_path: Path, tiny_model: Path) -> None:
    """Positions where choices are numbers are told of; where other rows show that answers are texts, it is refused."""
    numbers = ["2", "4", "8", "16"]
    positions = split_of([0, 1, 3], tmp_path, tiny_model, {}, numbers)
    assert (positions.rows["references"][1], positions.remarks) == (["B"], ())
    doubtful = split_of([0, 2], tmp_path, tiny_model, {}, numbers)
    assert doubtful.rows["references"][1] == ["C"]
    assert [(remark.rows, remark.samples) for remark in doubtful.remarks] == [(1, [2])]
    assert doubtful.remarks[0].reason.startswith("a number as the answer that is the position of a choice")
    with pytest.raises(DataError, match="positions of choices in some rows and texts of choices in others"):
        split_of([2, 16], tmp_path, tiny_model, {}, numbers)
    way = "{{ (choices | map('string') | list).index(answer | string) }}"
    said = split_of([2, 16], tmp_path, tiny_model, {"answer": way}, numbers)
    assert list(said.rows["references"]) == [["A"], ["D"]]
