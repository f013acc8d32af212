"""Reading rows: every kind of file there is, and every way one can be wrong in one line that says where."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from malora_cli.data.sources import load_rows
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings
from malora_cli.recipe.mix import existing

ROWS = [{"q": "1+1", "a": "2"}, {"q": "2+2", "a": "vier ü"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = "q,a\n1+1,2\n2+2,vier ü\n"


def _arrow_file(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _load(path: Path | str, usual: str = "train", /, **settings: Any) -> list[dict[str, Any]]:
    rows = load_rows(SourceSettings(path=str(path), **settings), split=usual)
    assert len(rows.sha256(rows.dataset.column_names)) == 64
    return rows.dataset.to_list()


def _message(path: Path | str, **settings: Any) -> str:
    """The one line that a source is refused with, free of what the libraries say among themselves."""
    with pytest.raises(DataError) as caught:
        _load(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.fix is None or caught.value.fix.endswith(".")
    for inside in ("Traceback", "Error", "pyarrow", "pandas", "Instruction", "OfflineMode", ".."):
        assert inside not in message
    return message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES),
        ("ROWS.JSONL", LINES),
        ("crlf.jsonl", LINES.replace("\n", "\r\n")),
        ("gaps.jsonl", "\n" + LINES.replace("\n", "\n\n")),
        ("mark.jsonl", "\ufeff" + LINES),
        ("rows.json", json.dumps(ROWS)),
        ("lines.json", LINES),
        ("rows.csv", TABLE),
        ("crlf.csv", TABLE.replace("\n", "\r\n")),
        ("mark.csv", "\ufeff" + TABLE),
        ("rows.tsv", TABLE.replace(",", "\t")),
        ("rows.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("rows.jsonl.bz2", bz2.compress(LINES.encode())),
        ("rows.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
        ("rows.csv.xz", lzma.compress(TABLE.encode())),
    ],
)
def test_text_files(name: str, content: str | bytes, tmp_path: Path) -> None:
    assert _load(_write(tmp_path / name, content)) == ROWS


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.parquet", lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path)),
        ("rows.arrow", _arrow_file),
        ("saved", lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(str(path))),
        ("splits", lambda path: datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(str(path))),
    ],
)
def test_binary_files_and_saved_datasets(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / name)
    assert _load(tmp_path / name) == ROWS


def test_a_folder_in_hub_layout_has_splits_and_configs(tmp_path: Path) -> None:
    _write(tmp_path / "hub" / "train-00000-of-00002.jsonl", LINES)
    _write(tmp_path / "hub" / "train-00001-of-00002.jsonl", LINES)
    _write(tmp_path / "hub" / "test.jsonl", LINES.splitlines()[0])
    assert _load(tmp_path / "hub") == ROWS * 2
    assert _load(tmp_path / "hub", "test") == ROWS[:1]
    assert _load(tmp_path / "hub", "test", split="train[1:2]") == ROWS[1:]  # the source's own split comes first
    assert "Unknown split" in (message := _message(tmp_path / "hub", split="validation"))
    assert "name a config and split that it has" in message
    assert _message(tmp_path / "hub", config="main").startswith(
        f"{tmp_path / 'hub'}: has no config 'main'; it has default."
    )


def test_the_configs_of_a_dataset_are_listed(tmp_path: Path) -> None:
    names = [f"level-{number}" for number in range(30)]
    card = "".join(f"- {{config_name: {name}, data_files: {name}.jsonl}}\n" for name in names)
    _write(tmp_path / "hub" / "README.md", f"---\nconfigs:\n{card}---\n")
    for name in names:
        _write(tmp_path / "hub" / f"{name}.jsonl", json.dumps({"q": name}))
    fix = "Name one, as in `train: {path: PATH, config: NAME}`."
    known = ", ".join(names)
    assert (
        _message(tmp_path / "hub") == f"{tmp_path}/hub: has several configs, and none is named; it has {known}. {fix}"
    )
    assert _message(tmp_path / "hub", config="x") == f"{tmp_path}/hub: has no config 'x'; it has {known}. {fix}"
    assert _load(tmp_path / "hub", config="level-7") == [{"q": "level-7"}]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", lambda path: _write(path, LINES)),
        ("rows.csv.gz", lambda path: _write(path, gzip.compress(TABLE.encode(), mtime=0))),
        ("rows.parquet", lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path)),
        ("hub/train.jsonl", lambda path: _write(path, LINES)),
        ("hub/train.parquet", lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path)),
    ],
)
def test_a_link_is_read_by_its_own_name(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    """As they lie in the hub's cache and in those of DVC: a store of files that are named after their hash."""
    (tmp_path / "blobs").mkdir()
    write(tmp_path / "blobs" / "0123abc")
    link = tmp_path / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "blobs" / "0123abc")
    given = name.partition("/")[0]
    for path in (existing(given, tmp_path), existing(f"./{given}", tmp_path), existing(str(link), tmp_path)):
        assert _load(path) == ROWS
    if given == name:
        assert _load(existing("row*", tmp_path)) == ROWS


def test_settings_of_a_hub_dataset_reach_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Builder:
        def download_and_prepare(self) -> None:
            asked["prepared"] = True

        def as_dataset(self, split: str) -> datasets.Dataset:
            asked["split"] = split
            return datasets.Dataset.from_list(ROWS)

    def stand_in(path: str, **options: Any) -> Builder:
        asked.update(path=path, **options)
        return Builder()

    monkeypatch.setattr("malora_cli.data.sources.load_dataset_builder", stand_in)
    assert _load("owner/name", "test", config="main", revision="abc") == ROWS
    assert asked == {"path": "owner/name", "name": "main", "split": "test", "revision": "abc", "prepared": True}
    _load("owner/name", "test", split="validation")
    assert asked["split"] == "validation"


def test_a_saved_dataset_is_one_split(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert "split 'test' not found" in _message(tmp_path / "saved", split="test")


def test_tables_are_text_and_nothing_is_guessed(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.csv", "q,a\n007,None\n1.50,NA\n1e5,true\n")
    assert _load(path) == [{"q": "007", "a": "None"}, {"q": "1.50", "a": "NA"}, {"q": "1e5", "a": "true"}]


def test_a_table_saved_with_its_index_has_a_column_without_a_name(tmp_path: Path) -> None:
    assert _load(_write(tmp_path / "rows.csv", ",q,a\n0,x,y\n")) == [{"q": "x", "a": "y"}]


def test_fields_may_hold_newlines_and_be_missing(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.csv", 'q,a\n"two\nlines",z\n,empty\nshort\n')
    rows = _load(path)
    assert rows[:2] == [{"q": "two\nlines", "a": "z"}, {"q": "", "a": "empty"}]
    assert rows[2]["q"] == "short"
    assert not rows[2]["a"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.jsonl", LINES + '{"q": "x", \n' + LINES, "x.jsonl:3: is not valid JSON (Expecting property name"),
        (
            "x.jsonl",
            LINES + '{"q":"x","a":"y',
            "x.jsonl:3: is not valid JSON (Unterminated string starting",
        ),
        ("x.jsonl", "\n" + LINES + "[1, 2]\n", "x.jsonl:4: is not a JSON object"),
        ("x.jsonl", LINES.encode() + b'{"q":"\xff"}\n', "x.jsonl:3: is not UTF-8 at byte 7"),
        ("x.jsonl.gz", gzip.compress((LINES + "{bad\n").encode(), mtime=0), "x.jsonl.gz:3: is not valid JSON"),
        ("x.jsonl.gz", gzip.compress(LINES.encode() + b'{"q":"\xff"}\n', mtime=0), "x.jsonl.gz:3: is not UTF-8"),
        ("x.json", '[{"q": 1},\n', "x.json:2: is not valid JSON (Expecting value at column 1)"),
        ("x.json", LINES + "{bad\n", "x.json:3: is not valid JSON"),
        ("x.jsonl", LINES + '{"q": "x", "q": "y"}\n', "x.jsonl:3: names 'q' twice"),
        ("x.jsonl", LINES + '{"\\u0000": "x"}\n', "x.jsonl:3: has a name that is not text"),
        ("x.json", b'[\n{"q": "\xff"}]', "x.json:2: is not UTF-8 at byte 8"),
        ("x.csv", "q,a\nx,y,z\nx,y,z\n", "x.csv:2: has 3 fields, and the header has 2"),
        ("x.csv", TABLE + "x,y,z\n", "x.csv:4: has 3 fields, and the header has 2"),
        ("x.csv", b"q,a\nx,\xff\n", "x.csv:2: is not UTF-8 at byte 3"),
        ("x.csv", 'q,a\n"x,y\n', "x.csv:2: is not valid CSV"),
        ("x.csv", "q,q\nx,y\n", "x.csv:1: names the column 'q' twice"),
        ("x.tsv", "q\ta\nx\ty\tz\n", "x.tsv:2: has 3 fields"),
    ],
)
def test_a_fault_is_told_with_its_line(name: str, content: str | bytes, expected: str, tmp_path: Path) -> None:
    message = _message(_write(tmp_path / name, content))
    assert message.startswith(str(tmp_path / expected.partition(":")[0]) + ":" + expected.partition(":")[2])
    assert re.search(r"(Mend or remove the line|Mend the line, or set `quotes.*|Save the file as UTF-8.*)\.$", message)


def test_a_fault_in_a_folder_names_the_file(tmp_path: Path) -> None:
    _write(tmp_path / "hub" / "train-0.jsonl", LINES)
    path = _write(tmp_path / "hub" / "train-1.jsonl", LINES + "{bad\n")
    assert _message(tmp_path / "hub").startswith(f"{path}:3: is not valid JSON")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.jsonl", "", "the file is empty"),
        ("x.parquet", "", "the file is empty"),
        ("x.jsonl", "\n\n", "has no rows"),
        ("x.json", "[]", "has no rows"),
        ("x.json", "  ", "has no rows"),
        ("x.csv", "q,a\n", "has no rows"),
        ("x.csv", "\n\n", "has no rows"),
    ],
)
def test_no_rows(name: str, content: str, expected: str, tmp_path: Path) -> None:
    path = _write(tmp_path / name, content)
    assert _message(path) == f"{path}: {expected}"


def test_a_dataset_without_rows(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), tmp_path / "x.parquet")
    _write(tmp_path / "hub" / "train.jsonl", "\n")
    for name in ("x.parquet", "hub"):
        assert _message(tmp_path / name) == f"{tmp_path / name}: has no rows"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.parquet", b"PAR1 and then nothing", "the data are damaged, or not what their name says"),
        ("x.arrow", b"nonsense", "the data are damaged, or not what their name says"),
        ("x.jsonl.gz", b"nonsense", "Not a gzipped file"),
        ("x.jsonl.gz", gzip.compress(LINES.encode() * 9, mtime=0)[:-12], "Compressed file ended"),
        ("x.jsonl.xz", lzma.compress(LINES.encode() * 9)[:-12], "Compressed file ended"),
    ],
)
def test_a_damaged_file_is_one_line(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    path = _write(tmp_path / name, content)
    message = _message(path)
    assert message.startswith(f"{path}: cannot be read (")
    assert expected in message
    assert message.endswith("Mend or replace it.")


def test_text_that_is_none_is_found_in_binary_files(tmp_path: Path) -> None:
    text = pa.array([b"fine", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"q": text}), tmp_path / "x.parquet")
    assert "damaged" in _message(tmp_path / "x.parquet")


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"junk")])
def test_a_damaged_saved_dataset_is_one_line(damage: Callable[[Path], None], tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    damage(next((tmp_path / "saved").glob("*.arrow")))
    assert _message(tmp_path / "saved").startswith(f"{tmp_path / 'saved'}: cannot be read (")


@pytest.mark.parametrize("name", ["x.txt", "x.pkl", "x.jsonl.lz4", "rows", "rows.gz"])
def test_an_unknown_suffix_names_the_known_ones(name: str, tmp_path: Path) -> None:
    message = _message(_write(tmp_path / name, LINES))
    assert "Use one of .jsonl, .json, .csv, .tsv, .parquet, .arrow" in message
    assert ("has no suffix" in message) == name.startswith("rows")


def test_a_folder_without_rows(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _write(tmp_path / "notes" / "readme.md", "hello")
    _write(tmp_path / "script" / "script.py", "print('never run')")
    for name in ("empty", "notes", "script"):
        assert _message(tmp_path / name).startswith(f"{tmp_path / name}: the folder holds no rows. Use one of .jsonl")


@pytest.mark.parametrize("path", ["nope.jsonl", "data/nope.csv.gz", "~/nope", "./nope", "/nope/nope", "a/b/c", "a b"])
def test_a_path_to_nothing(path: str) -> None:
    assert _message(path).startswith(f"{path}: file or folder not found")


def test_a_hub_dataset_without_a_network() -> None:
    message = _message("nobody/nothing", revision="abc", config="main")
    assert message.startswith("nobody/nothing: not found as a file or folder, and cannot be loaded from the hub (")
    assert "a config and split it has" in message


def test_a_pattern_is_all_files_of_that_name(tmp_path: Path) -> None:
    for number in (2, 1):
        _write(tmp_path / "part" / f"rows-{number}.jsonl", json.dumps({"q": str(number), "a": "x"}) + "\n")
    _write(tmp_path / "part" / "notes.txt", "no rows")
    assert [row["q"] for row in _load(tmp_path / "part" / "rows-*.jsonl")] == ["1", "2"]
    assert [row["q"] for row in _load(tmp_path / "**" / "*.jsonl")] == ["1", "2"]
    assert _message(tmp_path / "part" / "*.csv") == f"{tmp_path}/part/*.csv: no file matches this pattern"
    assert "rows cannot be read from '.txt' files" in _message(tmp_path / "part" / "*")


def test_files_of_one_pattern_are_of_one_kind(tmp_path: Path) -> None:
    _write(tmp_path / "a.csv", TABLE)
    _write(tmp_path / "b.jsonl", LINES)
    assert "b.jsonl: is not a '.csv' file as a.csv is" in _message(tmp_path / "[ab].*")


def test_the_fault_of_a_pattern_is_told_with_its_file(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", LINES)
    _write(tmp_path / "b.jsonl", LINES + "nonsense\n")
    assert _message(tmp_path / "*.jsonl").startswith(f"{tmp_path / 'b.jsonl'}:3: is not valid JSON")


def test_several_splits_and_parts_of_them(tmp_path: Path) -> None:
    _write(tmp_path / "hub" / "train.jsonl", LINES)
    _write(tmp_path / "hub" / "validation.jsonl", LINES.splitlines()[0])
    assert _load(tmp_path / "hub", split="train+validation") == [*ROWS, ROWS[0]]
    assert _load(tmp_path / "hub", split="train[:1]+validation") == [ROWS[0], ROWS[0]]


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.jsonl.gz", "x.parquet", "hub"])
def test_a_stream_is_cut_where_it_is_asked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [{"q": str(number), "a": "x"} for number in range(50)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path = tmp_path / name
    match name:
        case "x.csv":
            _write(path, "q,a\n" + "".join(f"{row['q']},x\n" for row in rows))
        case "x.parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case "hub":
            _write(path / "train.jsonl", lines)
        case "x.jsonl.gz":
            _write(path, gzip.compress(lines.encode(), mtime=0))
        case _:
            _write(path, lines)
    assert _load(path, stream=7) == rows[:7]
    assert _load(path, stream=70) == rows
    assert _load(path, stream=7) == rows[:7]


def test_a_stream_of_a_changed_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = _write(tmp_path / "x.jsonl", LINES)
    assert _load(path, stream=1) == ROWS[:1]
    _write(path, LINES.replace("1+1", "one and one"))
    assert _load(path, stream=1)[0]["q"] == "one and one"


def test_the_hash_is_that_of_the_content(tmp_path: Path) -> None:
    def sha256(name: str, content: str, used: list[str]) -> str:
        rows = load_rows(SourceSettings(path=str(_write(tmp_path / name, content))), split="train")
        return rows.sha256(used)

    first = sha256("a.jsonl", LINES, ["a", "q"])
    assert sha256("elsewhere.csv", TABLE, ["a", "q"]) == first
    assert sha256("a.jsonl", LINES.replace("vier", "four"), ["a", "q"]) != first
    more = "".join(json.dumps({**row, "unused": 1}) + "\n" for row in ROWS)
    assert sha256("more.jsonl", more, ["a", "q"]) == first
    assert sha256("more.jsonl", more, ["a"]) != first
