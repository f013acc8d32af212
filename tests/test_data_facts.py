"""What metrics want of a row besides its right answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from malora_cli.data.columns import RowReader
from malora_cli.data.encode_rows import Encoding
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats import FORMATS
from malora_cli.data.formats._base import RowError
from malora_cli.data.sources import load_rows
from malora_cli.data.splits import Split
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings

ROW: dict[str, Any] = {"prompt": "2 + 3?", "completion": "5", "checks": ["assert f() == 5"], "text": "t1", "n": None}


def facts(columns: dict[str, Any], row: dict[str, Any] = ROW, *, scored: bool = True) -> dict[str, Any]:
    form = "prompt-completion"
    reader = RowReader(form, FORMATS[form], columns, row, "rows", needs=("tests",), scored=scored)
    return dict(reader(row).facts)


def test_what_a_metric_needs_is_kept_of_rows_that_are_scored_alone() -> None:
    assert facts({"tests": "checks"}) == {"tests": ["assert f() == 5"]}
    assert facts({"tests": "checks", "cluster": "text"}) == {"tests": ["assert f() == 5"], "cluster": "t1"}
    assert facts({"tests": "{{ [checks[0], text] }}"}) == {"tests": ["assert f() == 5", "t1"]}
    assert facts({"tests": "checks"}, scored=False) == {}
    assert facts({"tests": "checks"}, {"prompt": "a", "completion": "b"}, scored=False) == {}


def test_a_column_that_a_metric_needs_is_there_and_filled() -> None:
    with pytest.raises(DataError, match="column not found: 'tests' for 'tests'"):
        facts({})
    with pytest.raises(RowError, match="no 'n'"):
        facts({"tests": "n"})
    with pytest.raises(DataError, match="no role 'testz'"):
        facts({"tests": "checks", "testz": "checks"})


QUESTION = {"question": "What melts ice?", "choices": ["cold", "heat"], "answer": 1, "tests": "x"}


@pytest.mark.parametrize(("form", "choices", "answer"), [("multiple-choice", ["A", "B"], "B"), ("cloze", None, "heat")])
def test_the_choices_of_a_question_are_the_answers_that_can_be_given(form: str, choices: Any, answer: str) -> None:
    reader = RowReader(form, FORMATS[form], {}, QUESTION, "rows", needs=("choices",), scored=True)
    example = reader(QUESTION)
    assert example.completion == answer
    assert example.facts == {"choices": choices or QUESTION["choices"]}
    assert json.loads(json.dumps(example.facts)) == example.facts


def test_a_cloze_does_not_show_its_choices() -> None:
    assert RowReader("cloze", FORMATS["cloze"], {}, QUESTION, "rows")(QUESTION).prompt == "What melts ice?"


# ---------------------------------------------------------------- choices that are weighed

NAMED = {"question": "Is ice cold?", "label": "yes", "labels": ["no", "yes"]}
PAIR = {"prompt": "question", "completion": "label", "choices": "labels"}


def split_of(
    row: dict[str, Any],
    columns: dict[str, Any],
    encoder: Encoder,
    folder: Path,
    form: str = "prompt-completion",
    *,
    scored: bool = True,
    max_length: int = 512,
) -> Split:
    """One row as a split, for a metric that weighs choices."""
    (folder / "rows.jsonl").write_text(json.dumps(row))
    found = load_rows(SourceSettings(path=str(folder / "rows.jsonl")), split="test")
    names = found.dataset.column_names
    reader = RowReader(form, FORMATS[form], columns, names, found.source, needs=("choices",), scored=scored)
    return Encoding(reader, encoder, None, max_length, "error", "error", once=scored).split(found)


def texts_of(split: Split, encoder: Encoder) -> list[str]:
    [choices] = split.rows["choices"]
    return [encoder._text(choice) for choice in choices]


@pytest.mark.parametrize("labels", ["labels", "{{ ['no', 'yes'] }}", "{{ labels | sort }}"])
def test_choices_are_tokens_behind_the_prompt_without_the_end_of_the_turn(
    labels: str, encoder: Encoder, tmp_path: Path
) -> None:
    split = split_of(NAMED, {**PAIR, "choices": labels}, encoder, tmp_path)
    assert texts_of(split, encoder) == ["no", "yes"]
    [example] = split.examples([0], 0)
    assert encoder._text(example.input_ids[example.prompt_tokens :]) == "yes<|im_end|>"
    assert json.loads(split.rows["facts"][0]) == {"choices": ["no", "yes"]}


def test_letters_and_texts_are_what_the_format_answers_with(encoder: Encoder, tmp_path: Path) -> None:
    assert texts_of(split_of(QUESTION, {}, encoder, tmp_path, "multiple-choice"), encoder) == ["A", "B"]
    assert texts_of(split_of(QUESTION, {}, encoder, tmp_path, "cloze"), encoder) == ["cold", "heat"]
    assert list(split_of(QUESTION, {}, encoder, tmp_path, "cloze", scored=False).rows["choices"]) == [[]]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"label": "maybe"}, "row 1 has the answer 'maybe', which is not one of its 2 choices"),
        ({"labels": "yes no"}, "row 1 has no list of two or more texts as its choices"),
        ({"labels": ["yes"]}, "row 1 has no list of two or more texts as its choices"),
        ({"labels": ["yes", " "]}, "row 1 has no list of two or more texts as its choices"),
        ({"labels": ["yes", {"no": 1}]}, "row 1 has no list of two or more texts as its choices"),
        ({"labels": ["yes", "no" * 300]}, "tokens, more than train.max_length 512"),
    ],
)
def test_a_row_without_a_right_choice_is_told(
    changes: dict[str, Any], told: str, encoder: Encoder, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=told):
        split_of({**NAMED, **changes}, PAIR, encoder, tmp_path)


def test_what_a_metric_takes_besides_is_kept_where_a_column_is_named_for_it() -> None:
    def kept(columns: dict[str, Any]) -> dict[str, Any]:
        form = "prompt-completion"
        given = RowReader(form, FORMATS[form], columns, ROW, "rows", needs=("tests",), wants=("stub",), scored=True)
        return dict(given(ROW).facts)

    assert kept({"tests": "checks"}) == {"tests": ["assert f() == 5"]}
    assert kept({"tests": "checks", "stub": "text"}) == {"tests": ["assert f() == 5"], "stub": "t1"}
    with pytest.raises(RowError, match="no 'n'"):
        kept({"tests": "checks", "stub": "n"})
