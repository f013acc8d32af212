"""Sources of several files: what is mapped has to be alike in all of them, and nothing else."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoTokenizer

from malora_cli.data import cache
from malora_cli.data.encoding import Encoder
from malora_cli.data.rows import Rows
from malora_cli.data.sources import load_rows
from malora_cli.data.tasks import Task, load_tasks
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings
from train_runs import load

Table = dict[str, list[Any]]
Write = Callable[[Path, Table], None]


def _json_lines(path: Path, table: Table) -> None:
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _csv(path: Path, table: Table) -> None:
    rows = [",".join(map(str, row)) for row in zip(*table.values(), strict=True)]
    path.write_text("\n".join([",".join(table), *rows, ""]), encoding="utf-8")


def _parquet(path: Path, table: Table) -> None:
    pq.write_table(pa.table(table), path)


def _arrow(path: Path, table: Table) -> None:
    made = pa.table(table)
    with pa.ipc.new_file(str(path), made.schema) as writer:
        writer.write_table(made)


KINDS: dict[str, Write] = {"jsonl": _json_lines, "csv": _csv, "parquet": _parquet, "arrow": _arrow}
FIRST: Table = {"question": ["a?", "b?"], "answer": ["1", "2"], "id": [1, 2], "source": ["web", "web"]}
SECOND: Table = {"answer": ["3", "4"], "note": [0.5, 1.5], "question": ["c?", "d?"], "id": ["x-1", "x-2"]}


def _write(folder: Path, kind: str, *tables: Table) -> Path:
    folder.mkdir(exist_ok=True)
    for number, table in enumerate(tables):
        KINDS[kind](folder / f"train-{number}.{kind}", table)
    return folder


def _load(path: Path | str, **settings: Any) -> Rows:
    return load_rows(SourceSettings(path=str(path), **settings), split="train")


def _task(place: Path, path: Path | str, *overrides: str) -> Task:
    recipe = load(place / "tiny.yaml", f"mix.tasks.add.train={path}", *overrides).recipe
    encoder = Encoder(AutoTokenizer.from_pretrained(recipe.model.base))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return next(task for task in load_tasks(recipe.mix, encoder, max_length=512) if task.name == "add")


def _refusal(place: Path, path: Path | str, *overrides: str) -> str:
    with pytest.raises(DataError) as caught:
        _task(place, path, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{place}/", "")


@pytest.mark.parametrize("pattern", ["rows/*", "rows"])
@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_nobody_maps_may_differ(kind: str, pattern: str, place: Path) -> None:
    _write(place / "rows", kind, FIRST, SECOND)
    train = _task(place, place / pattern).train
    assert list(train.rows["prompt"]) == ["a?", "b?", "c?", "d?"]
    assert [right for [right] in train.rows["references"]] == ["1", "2", "3", "4"]
    assert len(_task(place, f"{{path: {place / pattern}, stream: 3}}").train) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_lacks_a_mapped_column_is_named(kind: str, place: Path) -> None:
    lacking = {name: cells for name, cells in SECOND.items() if name != "answer"}
    _write(place / "rows", kind, FIRST, lacking)
    for more in ((), ("mix.tasks.add.bad_rows=drop",)):
        expected = (
            f"task 'add': rows/train-1.{kind}: has no column 'answer', which train-0.{kind} has. Add it, or name the"
        )
        assert _refusal(place, place / "rows" / "*", *more).startswith(expected)
    _write(place / "rows", kind, lacking, FIRST)
    assert f"rows/train-0.{kind}: has no column 'answer', which train-1" in _refusal(place, place / "rows" / "*")


def test_a_column_that_may_be_missing_is_not_asked_for(place: Path) -> None:
    _write(place / "rows", "csv", {**FIRST, "system": ["Be brief.", "Be brief."]}, SECOND)
    rows = _task(place, place / "rows" / "*").train.rows
    assert ["Be brief." in place for place in map(str, rows["prompt"])] == [False] * 4
    assert len(rows) == 4


def test_a_mapped_column_of_another_type_is_named_with_its_file(place: Path) -> None:
    _write(place / "rows", "parquet", FIRST, FIRST, SECOND)
    message = _refusal(place, place / "rows" / "*", "mix.tasks.add.columns.completion=id")
    assert message == (
        "task 'add': rows/train-2.parquet: has 'id' as string, and train-0.parquet as int64. Save them alike, or name "
        "the files that are."
    )
    where = f"{{path: {place}/rows/*, where: id}}"
    assert "has 'id' as string, and train-0.parquet as int64" in _refusal(place, where)


def test_numbers_of_several_sizes_are_numbers(place: Path) -> None:
    tables = [{"question": ["a?"], "answer": pa.array([1], pa.int32())}, {"question": ["b?"], "answer": [2.5]}]
    _write(place / "rows", "parquet", *tables, {"question": ["c?"], "answer": [None], "x": [1]})
    rows = _task(place, place / "rows" / "*", "mix.tasks.add.bad_rows=drop").train
    assert [right for [right] in rows.rows["references"]] == ["1", "2.5"]
    assert rows.left_out[0].samples == [1]


def test_classes_of_other_names_do_not_become_numbers(place: Path) -> None:
    (place / "rows").mkdir()
    for number, names in enumerate((["no", "yes"], ["yes", "no"])):
        features = Features({"question": Value("string"), "answer": ClassLabel(names=names)})
        rows = Dataset.from_dict({"question": ["a?"], "answer": [1]}, features=features)
        rows.to_parquet(str(place / "rows" / f"train-{number}.parquet"))
    assert "train-1.parquet: has 'answer' as ClassLabel(names=['yes', 'no'])" in _refusal(place, place / "rows" / "*")


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_told_with_its_file_and_its_number_there(kind: str, place: Path) -> None:
    empty = {**SECOND, "answer": ["3", ""]}
    _write(place / "rows", kind, FIRST, empty)
    row = {"csv": 3}.get(kind, 2)
    expected = f"task 'add': rows/train-1.{kind}: row {row} has an empty completion"
    assert _refusal(place, place / "rows" / "*").startswith(expected)


def test_splits_that_differ_are_read_together(place: Path) -> None:
    _write(place / "rows", "parquet", FIRST)
    KINDS["parquet"](place / "rows" / "validation.parquet", SECOND)
    rows = _load(place / "rows", split="validation+train[:1]")
    assert list(rows.dataset["question"]) == ["c?", "d?", "a?"]
    assert rows.dataset.column_names == ["question", "answer", "source", "note"]
    assert rows.columns == ["question", "answer", "source", "note", "id"]


def test_a_damaged_one_of_several_is_named(place: Path) -> None:
    _write(place / "rows", "parquet", FIRST, SECOND)
    (place / "rows" / "train-1.parquet").write_bytes(b"PAR1 and then nothing")
    assert _refusal(place, place / "rows" / "*").startswith(
        "task 'add': rows/train-1.parquet: cannot be read (the data are"
    )


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_file_for_every_row_is_one_entry_of_the_cache(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "user_cache_path", lambda _: tmp_path / "cache")
    for number in range(20):
        text = f"q,a\n{number},x\n" if kind == "csv" else f'{{\n"q": "{number}",\n"a": "x"}}'
        (tmp_path / f"{number:02}.{kind}").write_text(text, encoding="utf-8")
    (tmp_path / f"07.{kind}").write_text("q,b\n7,x\n" if kind == "csv" else '{"q": "7", "b": "x"}', encoding="utf-8")
    rows = load_rows(SourceSettings(path=f"{tmp_path}/*.{kind}"), split="train")
    assert [row["q"] for row in rows.dataset] == [str(number) for number in range(20)]
    assert [Path(rows.places.file(row)).name for row in (0, 7, 19)] == [f"{name}.{kind}" for name in ("00", "07", "19")]
    assert {rows.places.name(row) for row in range(20)} == {"row 2" if kind == "csv" else "row 1"}
    assert len(list((tmp_path / "cache" / "data").glob("text-*[0-9a-f]"))) == 1
    with pytest.raises(DataError, match=rf"07\.{kind}: has no column 'a', which 00\.{kind} has"):
        rows.check(["a"], ["a"])
    some = load_rows(SourceSettings(path=f"{tmp_path}/*.{kind}", stream=8), split="train")
    assert [row["q"] for row in some.dataset] == [str(number) for number in range(8)]
    (tmp_path / f"03.{kind}").write_text("q,a\nnew,x\n" if kind == "csv" else '{"q": "new"}', encoding="utf-8")
    assert load_rows(SourceSettings(path=f"{tmp_path}/*.{kind}"), split="train").dataset[3]["q"] == "new"
