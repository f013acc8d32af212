"""The cache: entries by what decided them, made anew where they are damaged, listed and removed."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import datasets
import pytest

from forked import forked
from json_output import assert_documented
from malora_cli.cli import main
from malora_cli.data.cache import cache_root, cached, entries, key_of, prune
from malora_cli.errors import DataError
from malora_cli.train.run import gather
from train_runs import load, workplace

_DAY = 86400.0


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_root()


def write(text: str) -> Any:
    def fill(scratch: Path) -> dict[str, Any]:
        (scratch / "rows.arrow").write_text(text)
        return {"source": text, "rows": 1}

    return fill


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.endswith(".lock"))


def test_an_entry_is_made_once(root: Path) -> None:
    folder, about = cached("a", write("first"))
    assert (folder / "rows.arrow").read_text() == about["source"] == "first"
    assert cached("a", write("second"))[1]["source"] == "first"
    assert names(root) == ["a"]


@pytest.mark.parametrize(("file", "content"), [("about.json", ""), ("about.json", "[]"), ("rows.arrow", "fi")])
def test_a_damaged_entry_is_made_anew_and_can_be_listed_and_removed(
    file: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = cached("a", write("first"))
    (folder / file).write_text(content)
    with pytest.raises(SystemExit) as caught:
        main(["cache", "ls"])
    assert caught.value.code == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(("1 entry of rows, ", "0 entries of rows, 1 of numbers about them, "))
    assert cached("a", write("second"))[1]["source"] == "second"
    (folder / file).write_text(content)
    assert [entry.path for entry in prune(unused_for_seconds=0)] == [folder]
    assert entries() == []


def test_an_encoded_entry_that_was_cut_is_no_internal_error(tmp_path: Path, tiny_model: Path, root: Path) -> None:
    recipe = load(workplace(tmp_path / "work", tiny_model)).recipe
    before = gather(recipe)
    for path in root.glob("encoded-*/rows.arrow"):
        path.write_bytes(path.read_bytes()[:-100])
    assert [task.train.sha256 for task in gather(recipe).tasks] == [task.train.sha256 for task in before.tasks]


def test_what_cannot_be_removed_is_not_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    cached("a", write("first"))
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(DataError, match=r"a cannot be removed \(Read-only"):
        prune(unused_for_seconds=0)


def test_keys_are_those_of_their_parts() -> None:
    assert key_of("encoded", 1, ["a"]) == key_of("encoded", 1, ["a"])
    assert len({key_of("encoded", 1), key_of("encoded", "1"), key_of("content", 1), key_of("encoded", 1, None)}) == 4


def test_pruning_takes_what_is_old_and_what_was_left_behind(root: Path) -> None:
    for name, days in (("old", 40), ("new", 1)):
        folder, _ = cached(name, write(name))
        os.utime(folder, times=(time.time() - days * _DAY,) * 2)
    (root / ".writing-dead").mkdir()
    assert [entry.about["source"] for entry in prune(unused_for_seconds=30 * _DAY)] == ["old"]
    assert {path.name for path in root.iterdir()} - {"new.lock"} == {"new"}  # older filelocks remove their files


def test_using_an_entry_keeps_it() -> None:
    folder, _ = cached("a", write("a"))
    os.utime(folder, times=(0, 0))
    cached("a", write("b"))
    assert prune(unused_for_seconds=_DAY) == []


def json_of(capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    with pytest.raises(SystemExit):
        main(command)
    return json.loads(capsys.readouterr().out)


def test_the_commands_list_and_remove(capsys: pytest.CaptureFixture[str]) -> None:
    cached("encoded-abc", write("rows.jsonl"))
    with pytest.raises(SystemExit):
        main(["cache", "ls"])
    listed = capsys.readouterr().out
    assert "encoded-abc" in listed
    assert "rows.jsonl" in listed
    told = json_of(capsys, "cache", "ls", "--json")
    assert_documented("malora cache ls", told)
    [entry] = told["rows"]["entries"]
    assert (entry["name"], entry["source"], entry["bytes"] > 0) == ("encoded-abc", "rows.jsonl", True)
    told = json_of(capsys, "cache", "prune", "--json")
    assert_documented("malora cache prune", told)
    assert told["removed"]["entries"] == []
    with pytest.raises(SystemExit):
        main(["cache", "prune"])
    assert capsys.readouterr().out == "removed 0 entries, 0.0 MiB\n"
    with pytest.raises(SystemExit):
        main(["cache", "prune", "--unused-for", "0d"])
    assert "removed 1 entry" in capsys.readouterr().out
    assert entries() == []
    with pytest.raises(SystemExit) as caught:
        main(["cache", "prune", "--unused-for", "soon"])
    assert caught.value.code == 2
    assert "must be a number of up to nine digits with m" in capsys.readouterr().err


def test_a_disk_that_fills_is_one_line_and_leaves_nothing(root: Path, tmp_path: Path, tiny_model: Path) -> None:
    """Files cannot grow beyond a limit here, which is met while rows are written."""
    recipe = workplace(tmp_path / "work", tiny_model)
    rows = [{"question": f"{number} " * 20, "answer": "x"} for number in range(400)]
    path = recipe.parent / "copy.train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        main(["check", str(recipe), "--no-step"])

    datasets.load_dataset("json", data_files=[str(path)])  # the library's own copy is there already
    ended = forked(fill, tmp_path)
    assert ended.code == 2
    assert ended.out.startswith("error: task 'copy': ")
    assert ended.out.count("\n") == 1
    assert "encoded rows cannot be kept (" in ended.out
    assert "malora cache prune" in ended.out
    # What fitted of the other tasks is whole, and stays.
    assert not [name for name in names(root) if name.startswith(".writing")]
    assert not [entry for entry in entries() if "copy.train" in entry.about.get("source", "")]
