"""`where`: the rows of a source for which a condition holds, and what is said of the others."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, List, Value
from transformers import AutoTokenizer

from malora_cli.data.encoding import Encoder
from malora_cli.data.filters import kept
from malora_cli.data.rows import Rows
from malora_cli.data.sources import load_rows
from malora_cli.data.tasks import Task, load_tasks
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings
from train_runs import load

ROWS: list[dict[str, Any]] = [
    {"question": "a?", "answer": "1", "label": True, "score": 0.9, "image": None, "more": {"tags": ["x", "y"]}},
    {"question": "b?", "answer": "2", "label": False, "score": 0.2, "image": None, "more": {"tags": []}},
    {"question": "c?", "answer": "3", "label": True, "score": None, "image": "c.png", "more": None},
    {"question": "d?", "answer": "4", "label": True, "score": "high", "image": "", "more": {"tags": ["y"]}},
]


def _write(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows), encoding="utf-8")  # each on an odd line
    return path


def _kept(path: Path, where: str, bad_rows: str = "error") -> Rows:
    return kept(load_rows(SourceSettings(path=str(path), where=where), split="train"), bad_rows)


def _refusal(path: Path, where: str, bad_rows: str = "error") -> str:
    with pytest.raises(DataError) as caught:
        _kept(path, where, bad_rows)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path.parent}/", "")


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("label", "acd"),
        ("label and not image", "ad"),
        ("row['label'] and not row.image", "ad"),
        ("{{ label and not image }}", "ad"),
        ("more.tags", "ad"),
        ("'x' in more.tags", "a"),
        ("question in ['a?', 'c?']", "ac"),
        ("answer | int > 2", "cd"),
        ("score is none", "c"),
    ],
)
def test_rows_for_which_it_holds_are_used(where: str, expected: str, tmp_path: Path) -> None:
    rows = _kept(_write(tmp_path, ROWS), where)
    assert "".join(row["question"][0] for row in rows.dataset) == expected
    left_out = [number for number, row in enumerate(ROWS) if row["question"][0] not in expected]
    (unused,) = rows.unused
    assert unused.reason == f"`{where}` does not hold"
    assert (unused.rows, unused.samples) == (len(left_out), [2 * number + 1 for number in left_out])
    assert [rows.places.number(row) for row in range(len(expected))] == [2 * "abcd".index(c) + 1 for c in expected]


def test_a_text_that_says_whether_something_is_so_is_to_be_compared(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,ok\na?,True\nb?,False\n", encoding="utf-8")
    assert _refusal(path, "ok") == (
        "rows.csv: row 2 has the text 'True' as the condition; compare it, as in `ok == 'True'`. "
        "Mend `where` of the source: it suits no row."
    )
    assert len(_kept(path, "ok == 'True'").dataset) == 1


def test_all_of_a_csv_is_text(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("q,label,score\na,False,0.9\nb,True,\nc,True,0.7\n")
    assert [row["q"] for row in _kept(path, "label == 'True'").dataset] == ["b", "c"]
    assert [row["q"] for row in _kept(path, "score and score | float > 0.8").dataset] == ["a"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (
            "lable",
            "rows.jsonl: the template of 'where' names the column 'lable', which is not there; did you mean 'label'?",
        ),
        ("label and", "rows.jsonl: the template of 'where' is not valid Jinja (line 1: "),
        ("{{ label }} and {{ image }}", "rows.jsonl: `where` is a text, not a condition"),
        ("1 == 1", "rows.jsonl: `where` names no column, so it is the same for every row"),
        ("question == 'z'", "rows.jsonl: `where` leaves no row (4: `question == 'z'` does not hold). Mend `where`"),
        (
            "score > 0.5",
            "rows.jsonl: row 5 has a cell that the template of 'where' cannot take (a null cell, of which no",
        ),
        (
            "score is none or score > 0.5",
            "row 7 has a cell that the template of 'where' cannot take ('>' not supported",
        ),
        (
            "question.__class__.__mro__",
            "row 1 has a cell that the template of 'where' cannot take (access to attribute",
        ),
        ("label and range(10**9) | list", "row 1 has a cell that the template of 'where' cannot take (Range too big"),
    ],
)
def test_a_condition_that_is_none_is_one_line(where: str, expected: str, tmp_path: Path) -> None:
    assert expected in _refusal(_write(tmp_path, ROWS), where)


def test_rows_that_do_not_suit_it_can_be_dropped(tmp_path: Path) -> None:
    rows = _kept(_write(tmp_path, ROWS), "score > 0.5", "drop")
    assert [row["question"] for row in rows.dataset] == ["a?"]
    assert sorted((unused.rows, unused.samples) for unused in rows.unused) == [(1, [3]), (1, [5]), (1, [7])]
    every = _refusal(_write(tmp_path, ROWS[2:]), "score > 0.5", "drop")
    assert every.startswith("rows.jsonl: `where` leaves no row (1: a cell that the template")


def test_where_it_suits_no_row_it_is_not_offered_to_drop_them(tmp_path: Path) -> None:
    message = _refusal(_write(tmp_path, ROWS), "question > 0.5")
    assert message.startswith(
        "rows.jsonl: row 1 has a cell that the template of 'where' cannot take ('>' not supported"
    )
    assert message.endswith("Mend `where` of the source: it suits no row.")
    assert _refusal(_write(tmp_path, ROWS), "score > 0.5").endswith("or set the task's bad_rows to drop.")


def test_of_pictures_it_knows_whether_there_are_any(tmp_path: Path) -> None:
    cells = {"q": ["a", "b", "c"], "image": [None, {"path": "x.png", "bytes": b"x"}, None]}
    many = [[], [], [{"path": "x.png", "bytes": b"x"}]]
    features = Features({"q": Value("string"), "image": Image(), "images": List(Image())})
    Dataset.from_dict({**cells, "images": many}, features=features).to_parquet(str(tmp_path / "x.parquet"))
    assert list(_kept(tmp_path / "x.parquet", "not image and not images").used(["q"])["q"]) == ["a"]
    assert _kept(tmp_path / "x.parquet", "q == 'b' or images").used(["q"])["q"][:] == ["b", "c"]


def test_text_that_is_none_is_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"q": pa.array([b"fine", b"\xff"]).view(pa.string())}), tmp_path / "x.parquet")
    assert "x.parquet: rows cannot be read" in _refusal(tmp_path / "x.parquet", "q")


def test_a_changed_file_is_gone_through_again(tmp_path: Path) -> None:
    assert len(_kept(_write(tmp_path, ROWS), "label").dataset) == 3
    assert len(_kept(_write(tmp_path, [*ROWS, ROWS[0]]), "label").dataset) == 4


# ---------------------------------------------------------------- in a mix


def _task(place: Path, *overrides: str) -> tuple[Task, list[str]]:
    recipe = load(place / "tiny.yaml", "mix.validation=null", *overrides).recipe
    encoder = Encoder(AutoTokenizer.from_pretrained(recipe.model.base))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tasks = load_tasks(recipe.mix, encoder, max_length=512)
    said = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    return next(task for task in tasks if task.name == "add"), said


def test_what_it_leaves_out_is_told_and_counted(place: Path) -> None:
    rows = [{"question": f"{n}?", "answer": f"{n}", "good": n % 4 > 0} for n in range(40)]
    source = f"mix.tasks.add.train={{path: {_write(place, rows)}, where: good}}"
    task, said = _task(place, source, "mix.tasks.add.test=null", "mix.tasks.add.holdout={rows: 6}")
    (unused,) = task.train.unused
    assert (task.train.read, len(task.train), unused.rows, len(task.test), task.test.unused) == (34, 24, 10, 6, [])
    assert unused.samples == [1, 9, 17, 25, 33]
    used = {*task.train.rows["prompt"], *task.test.rows["prompt"]}
    assert used == {row["question"] for row in rows if row["good"]}
    assert said == ["task 'add': 10 train rows are left out: `good` does not hold (row 1, 9, 17, 25, 33)"]


def test_one_that_leaves_nothing_out_is_told_of(place: Path) -> None:
    _, said = _task(place, f"mix.tasks.add.train={{path: {place / 'add.train.jsonl'}, where: question}}")
    assert said == [f"task 'add': {place / 'add.train.jsonl'}: `question` holds for every row"]
