"""The cache: whole entries or none, whoever is killed and however many make one at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from malora_cli.cli import main
from malora_cli.data.cache import cache_root, cached, entries, key_of, prune
from train_runs import workplace

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


def test_what_fails_leaves_nothing(root: Path) -> None:
    def fail(scratch: Path) -> dict[str, Any]:
        (scratch / "rows.arrow").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("a", fail)
    assert names(root) == []
    assert cached("a", write("whole"))[1]["source"] == "whole"


def test_keys_are_those_of_their_parts() -> None:
    assert key_of("encoded", 1, ["a"]) == key_of("encoded", 1, ["a"])
    assert len({key_of("encoded", 1), key_of("encoded", "1"), key_of("content", 1), key_of("encoded", 1, None)}) == 4


_FILLER = """
import sys, time
from pathlib import Path
from malora_cli.data.cache import cached

def fill(scratch):
    (scratch / "rows.arrow").write_text("half")
    print("filling", flush=True)
    time.sleep(float(sys.argv[1]))
    with open(sys.argv[2], "a") as file:
        file.write("x")
    return {"source": "process", "rows": 1}

print(cached("a", fill)[1]["source"], flush=True)
"""


def _filler(seconds: float, counter: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _FILLER, str(seconds), str(counter)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})


def test_a_killed_process_leaves_no_half_entry(root: Path, tmp_path: Path) -> None:
    process = _filler(60, tmp_path / "count")
    assert process.stdout is not None
    assert process.stdout.readline() == "filling\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (root / "a").exists()
    assert names(root) == [".writing-a"]
    assert cached("a", write("whole"))[1]["source"] == "whole"
    assert names(root) == ["a"]


def test_several_processes_at_once_make_an_entry_once(root: Path, tmp_path: Path) -> None:
    processes = [_filler(0.5, tmp_path / "count") for _ in range(4)]
    assert all(process.wait() == 0 for process in processes)
    assert (tmp_path / "count").read_text() == "x"
    assert names(root) == ["a"]


def test_pruning_takes_what_is_old_and_what_was_left_behind(root: Path, tmp_path: Path) -> None:
    for name, days in (("old", 40), ("new", 1)):
        folder, _ = cached(name, write(name))
        os.utime(folder, times=(time.time() - days * _DAY,) * 2)
    (root / ".writing-dead").mkdir()
    busy = _filler(60, tmp_path / "count")
    assert busy.stdout is not None
    assert busy.stdout.readline() == "filling\n"
    assert [entry.about["source"] for entry in prune(unused_for_seconds=30 * _DAY)] == ["old"]
    assert names(root) == [".writing-a", "new"]
    assert sorted(path.name for path in root.glob("*.lock")) == ["a.lock", "new.lock"]
    busy.kill()
    busy.wait()


def test_using_an_entry_keeps_it() -> None:
    folder, _ = cached("a", write("a"))
    os.utime(folder, times=(0, 0))
    cached("a", write("b"))
    assert prune(unused_for_seconds=_DAY) == []


def test_the_commands_list_and_remove(capsys: pytest.CaptureFixture[str]) -> None:
    cached("encoded-abc", write("rows.jsonl"))
    with pytest.raises(SystemExit):
        main(["cache", "ls"])
    listed = capsys.readouterr().out
    assert "encoded-abc" in listed
    assert "rows.jsonl" in listed
    with pytest.raises(SystemExit):
        main(["cache", "prune"])
    assert capsys.readouterr().out == "removed 0 entries, 0.0 MiB\n"
    with pytest.raises(SystemExit):
        main(["cache", "prune", "--unused-for", "0d"])
    assert "removed 1 entries" in capsys.readouterr().out
    assert list(entries()) == []
    with pytest.raises(SystemExit) as caught:
        main(["cache", "prune", "--unused-for", "soon"])
    assert caught.value.code == 2
    assert "a time is a number with m, h, d or w" in capsys.readouterr().err


_FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from malora_cli.cli import main
from malora_cli.cli._common import prepare_libraries
prepare_libraries()
import malora_cli.train.run
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
main(["check", sys.argv[1], "--no-step"])
"""


def test_a_disk_that_fills_is_one_line_and_leaves_nothing(root: Path, tmp_path: Path, tiny_model: Path) -> None:
    """Files cannot grow beyond a limit here, which is met while rows are written."""
    recipe = workplace(tmp_path / "work", tiny_model)
    rows = [{"question": f"{number} " * 20, "answer": "x"} for number in range(400)]
    path = recipe.parent / "copy.train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "hf")}
    # The library's own copy of the rows is there already; what does not fit is ours.
    first = [sys.executable, "-c", f"import datasets; datasets.load_dataset('json', data_files=[{str(path)!r}])"]
    subprocess.run(first, env=environment, check=True, capture_output=True)
    command = [sys.executable, "-c", _FULL_DISK, str(recipe)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: task 'copy': ")
    assert result.stderr.count("\n") == 1
    assert "encoded rows cannot be kept (" in result.stderr
    assert "malora cache prune" in result.stderr
    assert not [name for name in names(root) if name.startswith((".writing", "encoded"))]
