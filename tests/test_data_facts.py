"""What metrics want of a row besides its right answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from malora_cli.data.columns import RowReader
from malora_cli.data.formats import FORMATS
from malora_cli.data.formats._base import RowError
from malora_cli.errors import DataError

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
    with pytest.raises(DataError, match="no column 'tests' for 'tests'"):
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
