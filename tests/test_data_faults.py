"""What is said of tasks whose rows cannot be used: of all of them at once, and what helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import append_rows
from malora_cli.data.encoding import Encoder
from malora_cli.data.tasks import load_tasks
from malora_cli.errors import DataError
from train_runs import load


def _faults(place: Path, encoder: Encoder, *overrides: str) -> list[str]:
    with pytest.raises(DataError) as caught:
        load_tasks(load(place / "tiny.yaml", *overrides).recipe.mix, encoder, max_length=512)
    return str(caught.value).splitlines()


def test_the_faults_of_all_tasks_are_told_at_once(place: Path, encoder: Encoder) -> None:
    append_rows(place / "copy.train.jsonl", {"question": "x"})
    assert _faults(place, encoder, "mix.tasks.add.test=nope.jsonl") == [
        f"task 'copy': {place / 'copy.train.jsonl'}: row 19 has no 'answer'. Mend or remove the row, or set the task's "
        "bad_rows to drop.",
        "task 'add': nope.jsonl: file or folder not found. Paths are relative to the file that names them.",
    ]
    every = [f"mix.tasks.{name}.columns.prompt=nope" for name in ("copy", "upper", "add")]
    assert len(_faults(place, encoder, *every, "mix.tasks.upper.train=nope.csv")) == 3


def test_a_fault_that_all_tasks_share_is_told_once(
    place: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "file"))
    [line] = _faults(place, encoder)
    assert line.startswith("task 'copy': ")
    assert line.endswith("or set XDG_CACHE_HOME to another folder.")


def test_of_very_many_faults_some_are_shown(place: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("malora_cli.data.tasks._FAULTS", 1)
    every = [f"mix.tasks.{name}.columns.prompt=nope" for name in ("copy", "upper", "add")]
    assert _faults(place, encoder, *every)[1:] == ["and 2 more tasks with a fault in their data"]


@pytest.mark.parametrize("rows", [1, 3])
def test_where_no_row_can_be_used_it_is_not_offered_to_drop_them(rows: int, place: Path, encoder: Encoder) -> None:
    path = place / "none.jsonl"
    append_rows(path, *[{"question": "x", "answer": None}] * rows)
    also = f", as have all of the first {rows} rows" if rows > 1 else ""
    assert _faults(place, encoder, f"mix.tasks.add.train={path}") == [
        f"task 'add': {path}: row 1 has no 'answer'{also}. Check the task's `columns`, `format` and `where`."
    ]
    append_rows(path, {"question": "x", "answer": "y"})
    assert "set the task's bad_rows to drop" in _faults(place, encoder, f"mix.tasks.add.train={path}")[0]


def test_a_path_of_an_optional_text_that_is_nowhere_is_told(place: Path, encoder: Encoder) -> None:
    path = place / "seeds.jsonl"
    rows = [{"instruction": "Name it.", "more": [{"input": text, "output": "x"}]} for text in ("grass", "snow")]
    append_rows(path, *rows, {"instruction": "Name it.", "more": [{"output": "x"}]})
    task = {"train": str(path), "holdout": {"rows": 1}, "format": "alpaca", "metric": "exact-match"}

    def told(source: str) -> list[str]:
        settings = task | {"columns": {"input": source, "output": "more.0.output"}}
        return _faults(place, encoder, f"mix.tasks={json.dumps({'seeds': settings})}")

    assert told("more.0.inptu") == [
        f"task 'seeds': {path}: none of the first rows has anything at 'more.0.inptu'. See how its parts are spelt, or "
        "leave it out."
    ]
    with pytest.raises(pytest.fail.Exception):  # there is nothing to tell where some rows have it
        told("more.0.input")
