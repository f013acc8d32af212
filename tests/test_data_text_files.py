"""Text files value by value: what stands in one reaches the prompt, and what cannot be read is told with its line."""

from __future__ import annotations

import json
import pickle
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from malora_cli.data import text_files
from malora_cli.data.columns import RowReader
from malora_cli.data.encode_rows import Encoding
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats import FORMATS
from malora_cli.data.holdout import hold_out
from malora_cli.data.rows import Rows
from malora_cli.data.sources import load_rows
from malora_cli.data.splits import Split
from malora_cli.errors import DataError
from malora_cli.recipe import HoldoutSettings, SourceSettings

#: How values are written in JSON, and the text that is to come of each.
VALUES = {
    "1": "1",
    "2.50": "2.50",
    "1e5": "1e5",
    "-0": "-0",
    "18446744073709551616": "18446744073709551616",
    "1e999": "1e999",
    "9" * 5000: "9" * 5000,
    '"2024-01-01"': "2024-01-01",
    '"2024-01-01T00:00:00Z"': "2024-01-01T00:00:00Z",
    '"007"': "007",
    '"\\u0000x"': "\0x",
    "true": "true",
    "Infinity": "Infinity",
}


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _load(path: Path | str, **settings: Any) -> Rows:
    return load_rows(SourceSettings(path=str(path), **settings), split="train")


def _refusal(path: Path | str, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        _load(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _answers(rows: Rows) -> list[str]:
    reader = RowReader("prompt-completion", FORMATS["prompt-completion"], {}, rows.dataset.column_names, "rows")
    return [reader(row).completion for row in rows.dataset]


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(tiny_model))


def _encoded(rows: Rows, encoder: Encoder, bad_rows: str = "error", too_long: Any = "drop") -> Split:
    reader = RowReader("prompt-completion", FORMATS["prompt-completion"], {}, rows.dataset.column_names, "rows")
    return Encoding(reader, encoder, None, 64, too_long, bad_rows).split(rows)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.tsv", "hub/train.jsonl", "hub/train.csv"])
def test_the_text_of_a_value_is_that_of_the_file(name: str, tmp_path: Path) -> None:
    objects = [f'{{"prompt": "x", "completion": {value}}}' for value in VALUES]
    match name.rpartition(".")[2]:
        case "jsonl":
            content = "\n".join(objects)
        case "json":
            content = f"[{', '.join(objects)}]"
        case kind:
            between = "," if kind == "csv" else "\t"
            content = "\n".join(f"x{between}{text}" for text in ["completion", *VALUES.values()])
            content = content.replace("x", "prompt", 1)
    path = _write(tmp_path / name, content)
    assert _answers(_load(tmp_path / "hub" if "hub" in name else path)) == list(VALUES.values())


def test_values_of_a_lot_of_texts_are_those_of_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's reader takes the lots that it can read; the same rows come of them."""
    lines = [json.dumps({"prompt": f"ü {number}\n", "completion": f"{number}"}) + "\n" for number in range(40)]
    lines[20] = '{"completion": 2.50, "prompt": "x"}\n'
    lines[30] = "\n"
    lines[35] = '{"prompt": "\\ud83d\\ude00", "other": null}\n'
    monkeypatch.setattr(text_files, "_LOT", 200)
    quick: list[bool] = []
    read_by_arrow = text_files._read_by_arrow

    def watched(lot: list[str], first: int, names: Sequence[str]) -> Any:
        found = read_by_arrow(lot, first, list(names))
        quick.append(found is not None)
        return found

    monkeypatch.setattr(text_files, "_read_by_arrow", watched)
    path = _write(tmp_path / "x.jsonl", "".join(lines))
    mixed = _load(path)
    assert len(set(quick)) == 2
    monkeypatch.setattr(text_files, "_read_by_arrow", lambda *_: None)
    slow = _load(_write(tmp_path / "y.jsonl", "".join(lines)))
    assert list(mixed.dataset) == list(slow.dataset)
    assert mixed.dataset[19] == {"prompt": "ü 19\n", "completion": "19", "other": None}
    assert mixed.dataset[34] == {"prompt": "\U0001f600", "completion": None, "other": None}
    assert [mixed.places.number(row) for row in (0, 29, 30, 38)] == [1, 30, 32, 40]


def test_numbers_are_numbers_in_templates_and_written_as_in_the_file(tmp_path: Path) -> None:
    columns = {"prompt": "{{ a }} and {{ a * 2 }}: {{ l }}", "completion": "{{ 'yes' if b else 'no' }}"}
    rows = _load(_write(tmp_path / "x.jsonl", '{"a": 2.50, "b": false, "l": [1, 2.0, {"x": null}]}'))
    example = RowReader("template", FORMATS["template"], columns, rows.dataset.column_names, "x")(rows.dataset[0])
    assert (example.prompt, example.completion) == ("2.50 and 5.0: [1, 2.0, {'x': null}]", "no")
    assert pickle.loads(pickle.dumps(rows.dataset[0])) == rows.dataset[0]


def test_objects_of_any_shape_are_rows_of_one_column(tmp_path: Path) -> None:
    lines = ['{"m": [{"role": "user", "x": 1}]}', '{"m": "text"}', '{"m": {"y": []}, "n": 1}', "{}"]
    rows = list(_load(_write(tmp_path / "x.jsonl", "\n".join(lines))).dataset)
    assert [row["m"] for row in rows] == [[{"role": "user", "x": 1}], "text", {"y": []}, None]


def test_half_a_character_is_a_bad_row(tmp_path: Path, encoder: Encoder) -> None:
    lines = ['{"prompt": "x", "completion": "y"}', '{"prompt": "\\ud800", "completion": "y"}']
    rows = _load(_write(tmp_path / "x.jsonl", "\n".join(lines)))
    with pytest.raises(DataError, match="row 2 has half of a character"):
        _encoded(rows, encoder)
    assert _encoded(rows, encoder, "drop").left_out[0].samples == [2]


# ---------------------------------------------------------------- lines


@pytest.mark.parametrize("kind", ["jsonl", "csv", "json", "parquet"])
def test_rows_that_are_held_out_keep_their_numbers(kind: str, tmp_path: Path, encoder: Encoder) -> None:
    """The line of a text file, the number of any other row; whatever was drawn for the test."""
    table = [{"prompt": f"q{number}", "completion": "" if number == 60 else "y"} for number in range(80)]
    path = tmp_path / f"x.{kind}"
    match kind:
        case "jsonl":
            path.write_text("\n".join(f"{json.dumps(row)}\n" for row in table))  # each below an empty line
            line = 60 * 2 + 1
        case "csv":
            path.write_text(
                '"prompt","completion"\n' + "".join(f'"{r["prompt"]}\n","{r["completion"]}"\n' for r in table)
            )
            line = 60 * 2 + 2
        case "json":
            path.write_text(json.dumps(table, indent=1))
            line = 60 * 4 + 2
        case _:
            pq.write_table(pa.Table.from_pylist(table), path)
            line = 61
    parts = hold_out(_load(path), HoldoutSettings(rows=20), seed=1)
    splits = [_encoded(part, encoder, "drop") for part in parts]
    assert [unused.samples for split in splits for unused in split.left_out] == [[line]]
    with pytest.raises(DataError, match=f"row {line} has an empty completion"):
        [_encoded(part, encoder) for part in parts]
    numbers = sorted(number for split in splits for number in split.source_rows(range(len(split))))
    assert len(set(numbers)) == 79
    assert line not in numbers


def test_the_row_of_a_pattern_is_told_with_its_file(tmp_path: Path, encoder: Encoder) -> None:
    good = '{"prompt": "x", "completion": "y"}\n'
    for name, content in (("a", good * 3), ("b", good + '{"prompt": "x"}\n'), ("c", good)):
        _write(tmp_path / f"{name}.jsonl", content)
    with pytest.raises(DataError) as caught:
        _encoded(_load(tmp_path / "*.jsonl"), encoder)
    assert str(caught.value).startswith(f"{tmp_path / 'b.jsonl'}: row 2 has no 'completion'")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"prompt": "x", "completion": "y", "deep": ' + "[" * 100_000, "x.jsonl:2: is nested too deeply"),
        ('{"prompt": "x", "completion": "y", "deep": ' + '{"a":' * 600 + "1" + "}" * 601, "x.jsonl:2: is nested too"),
        ('{"prompt": "x", "prompt": "y"}', "x.jsonl:2: names 'prompt' twice"),
        ('{"prompt": "x"} {"prompt": "y"}', "x.jsonl:2: is not valid JSON (Extra data at column 17)"),
        ('{"prompt": "x"; "y": 1}', "x.jsonl:2: is not valid JSON (Expecting ',' delimiter at column 15)"),
        ('{"prompt" "x"}', "x.jsonl:2: is not valid JSON (Expecting ':' delimiter at column 11)"),
        ("{" + ", ".join(f'"c{n}": 1' for n in range(10_001)) + "}", "x.jsonl:2: brings the columns to more than 10"),
    ],
)
def test_a_line_that_is_no_row(content: str, expected: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", '{"prompt": "x", "completion": "y"}\n' + content + "\n")
    assert _refusal(path).startswith(f"{tmp_path}/{expected}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"a": 1},\n {"a": 2}', "x.json:2: is not valid JSON (Expecting ',' delimiter at column 10)"),
        ('[{"a": 1},\n 7]', "x.json:2: is not a JSON object"),
        ('[{"a": 1},\n {"b": 1, "b": 2}]', "x.json:2: names 'b' twice"),
        ('[{"a": 1}]\n{}', "x.json:2: is not valid JSON (Extra data at column 1)"),
        ('[{"a": 1},]', "x.json:1: is not valid JSON (Expecting value at column 11)"),
    ],
)
def test_an_array_that_is_none(content: str, expected: str, tmp_path: Path) -> None:
    assert _refusal(_write(tmp_path / "x.json", content)).startswith(f"{tmp_path}/{expected}")


def test_objects_one_below_another_are_rows(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.json", json.dumps({"a": "1"}, indent=1) + "\n" + json.dumps({"a": "2"}, indent=1))
    rows = _load(path)
    assert [row["a"] for row in rows.dataset] == ["1", "2"]
    assert [rows.places.number(row) for row in range(2)] == [1, 4]


# ---------------------------------------------------------------- tables


def test_a_long_field_and_any_end_of_a_line(tmp_path: Path) -> None:
    long = "word " * 40_000
    rows = _load(_write(tmp_path / "x.csv", f"prompt,completion\n{long},y\nx,z\n"))
    assert [row["prompt"] for row in rows.dataset] == [long, "x"]
    for end in ("\r", "\r\n", "\n"):
        path = _write(tmp_path / f"{len(end)}{ord(end[0])}.csv", f"prompt,completion{end}x,y{end}z,w{end}")
        rows = _load(path)
        assert list(rows.dataset) == [{"prompt": "x", "completion": "y"}, {"prompt": "z", "completion": "w"}]
        assert rows.places.number(1) == 3


def test_a_table_of_very_many_columns_is_one_line(tmp_path: Path) -> None:
    header = ",".join(f"c{number}" for number in range(100_000))
    path = _write(tmp_path / "x.csv", f"{header}\n" + "1," * 99_999 + "1\n")
    assert _refusal(path).startswith(f"{path}:1: names 100,000 columns, more than 10,000")


# ---------------------------------------------------------------- sizes


def test_a_row_of_too_many_characters_is_a_bad_row(tmp_path: Path, encoder: Encoder) -> None:
    huge = json.dumps({"prompt": "word " * 1_000_000, "completion": "y"})
    rows = _load(_write(tmp_path / "x.jsonl", f'{{"prompt": "x", "completion": "y"}}\n\n{huge}\n'))
    with pytest.raises(DataError, match=r"x\.jsonl: row 3 has 5,000,001 characters, more than 4,000,000"):
        _encoded(rows, encoder, too_long="truncate_left")
    split = _encoded(rows, encoder, "drop", "truncate_left")
    assert (len(split), split.left_out[0].samples) == (1, [3])


# ---------------------------------------------------------------- sources


@pytest.mark.parametrize("name", ["pandas", "json", "csv", "text", "arrow", "webdataset"])
def test_the_name_of_a_reader_is_no_source(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "train.pkl", pickle.dumps({"prompt": ["x"]}))
    _write(tmp_path / "train.jsonl", '{"prompt": "x"}\n')
    assert _refusal(name).startswith(f"{name}: is the name of a reader of `datasets`")
    _write(tmp_path / name / "train.jsonl", '{"prompt": "mine"}\n')
    assert [row["prompt"] for row in _load(name).dataset] == ["mine"]


def test_nothing_local_is_asked_for_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refused(*_: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    # As without HF_HUB_OFFLINE, where the library announces what it loads.
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    announced: list[str] = []
    monkeypatch.setattr("datasets.load.increase_load_count", announced.append)
    table = pa.table({"prompt": ["x"]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), table.schema) as writer:
        writer.write_table(table)
    _write(tmp_path / "x.jsonl", '{"prompt": "x"}\n')
    _write(tmp_path / "x.json", '[{"prompt": "x"}]\n')
    _write(tmp_path / "x.csv", "prompt\nx\n")
    _write(tmp_path / "folder" / "train.jsonl", '{"prompt": "x"}\n')
    datasets.Dataset.from_dict({"prompt": ["x"]}).save_to_disk(str(tmp_path / "saved"))
    for name in ("x.parquet", "x.arrow", "x.jsonl", "x.json", "x.csv", "folder", "saved"):
        for stream in (None, 1):
            assert [row["prompt"] for row in _load(tmp_path / name, stream=stream).dataset] == ["x"]
    assert announced == []


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "again").symlink_to(tmp_path / "folder")
    assert _refusal("/").startswith("/: is the root of the file system, not a dataset")
    for name in ("loop.jsonl", "round"):
        assert _refusal(tmp_path / name).startswith(f"{tmp_path / name}: file or folder not found")
    assert _refusal(tmp_path / "folder").startswith(f"{tmp_path / 'folder'}: the folder holds no rows")
    for long in ("a" * 300, f"owner/{'a' * 300}", f"{'a' * 300}.jsonl", f"{'a' * 300}*.jsonl"):
        assert _refusal(long).startswith(f"{long}: ")


def test_long_rows_go_through_the_tokenizer_few_at_a_time(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"prompt": "x" * size, "completion": f"{size}"}) for size in (10, 90, 20, 30, 1, 400, 2)]
    rows = _load(_write(tmp_path / "x.jsonl", "\n".join(lines)))
    whole = _encoded(rows, encoder, too_long="truncate_left")
    calls: list[int] = []
    tokenise = encoder.tokenise
    monkeypatch.setattr("malora_cli.data.encode_rows._CHARACTERS", 100)
    monkeypatch.setattr("malora_cli.data.encode_rows.cached", lambda _, fill: (tmp_path, fill(tmp_path)))
    monkeypatch.setattr(encoder, "tokenise", lambda lot: calls.append(len(lot)) or tokenise(lot))
    few = _encoded(rows, encoder, too_long="truncate_left")
    assert sum(calls) == 7
    assert len(calls) > 3
    assert few.sha256 == whole.sha256
