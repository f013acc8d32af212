"""Folders that are made once: whole or not at all, whoever is killed and however many make one at once."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from malora_cli.results import once
from malora_cli.results.once import clear_scratch, folders_in, known_about, made_once


def write(text: str) -> Callable[[Path], dict[str, Any]]:
    def fill(scratch: Path) -> dict[str, Any]:
        (scratch / "rows.arrow").write_text(text)
        (scratch / "parts").mkdir()
        (scratch / "parts" / "one").write_text("1")
        return {"text": text, "pair": (1, 2)}

    return fill


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.endswith(".lock"))


def test_it_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "a"
    first = made_once(folder, write("first"))
    assert first == made_once(folder, write("second")) == known_about(folder) == {"text": "first", "pair": [1, 2]}
    assert (folder / "rows.arrow").read_text() == "first"
    assert names(tmp_path / "root") == ["a"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(scratch: Path) -> dict[str, Any]:
        (scratch / "rows.arrow").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_once(tmp_path / "a", fail)
    assert names(tmp_path) == []
    assert made_once(tmp_path / "a", write("whole"))["text"] == "whole"


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(1, 1))  # another time, whatever the clock's ticks


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": lambda folder: _flip(folder / "rows.arrow"),
    "cut": lambda folder: (folder / "rows.arrow").write_text("fi"),
    "gone": lambda folder: (folder / "parts" / "one").unlink(),
    "empty record": lambda folder: (folder / "about.json").write_text(""),
    "no record": lambda folder: (folder / "about.json").unlink(),
    "record of another layout": lambda folder: (folder / "about.json").write_text('{"rows": 3}'),
    "record that is no object": lambda folder: (folder / "about.json").write_text('{"about": {}, "files": [1]}'),
    "record of other values": lambda folder: (folder / "about.json").write_text('{"about": 1, "files": {"rows": 2}}'),
    "record that is no text": lambda folder: (folder / "about.json").write_bytes(b"\xff\x00"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_made_anew(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    made_once(folder, write("first"))
    DAMAGE[damage](folder)
    assert made_once(folder, write("second"))["text"] == "second"
    assert (folder / "rows.arrow").read_text() == "second"
    assert names(tmp_path) == ["a"]


def test_a_copy_is_the_same_folder_and_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    sha256 = once.file_sha256
    monkeypatch.setattr(once, "file_sha256", lambda path: hashed.append(path.name) or sha256(path))
    folder = tmp_path / "a"
    made_once(folder, write("first"))
    assert hashed == ["one", "rows.arrow"]
    os.utime(folder / "rows.arrow", (1, 1))
    for _ in range(2):
        assert made_once(folder, write("second"))["text"] == "first"
    assert hashed[2:] == ["rows.arrow"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_what_cannot_be_written_is_read(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only disk says otherwise than a folder of somebody else's; a privileged user is told of neither."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    folder = tmp_path / "a"
    made_once(folder, write("first"))
    os.utime(folder / "rows.arrow", (1, 1))
    for module, name in ((once, "_lock"), (once, "write_json"), (Path, "mkdir"), (os, "utime")):
        monkeypatch.setattr(module, name, refuse)
    assert made_once(folder, write("second"))["text"] == "first"
    with pytest.raises(OSError, match=os.strerror(number)):
        made_once(tmp_path / "b", write("first"))


_FILLER = """
import sys, time
from pathlib import Path
from malora_cli.results import made_once

def fill(scratch):
    (scratch / "rows.arrow").write_text("half")
    print("filling", flush=True)
    time.sleep(float(sys.argv[1]))
    with open(sys.argv[2], "a") as file:
        file.write("x")
    return {"text": "process"}

made_once(Path(sys.argv[3]), fill)
"""


def _filler(seconds: float, counter: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _FILLER, str(seconds), str(counter), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _busy(tmp_path: Path, folder: Path) -> subprocess.Popen[str]:
    """A process that is half-way through filling a folder."""
    process = _filler(60, tmp_path / "count", folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "filling\n"
    return process


def test_a_killed_process_leaves_no_half_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    process = _busy(tmp_path, root / "a")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert names(root) == [".writing-a"]
    assert list(folders_in(root)) == []
    assert made_once(root / "a", write("whole"))["text"] == "whole"
    assert names(root) == ["a"]


def test_several_processes_at_once_make_it_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    processes = [_filler(0.3, tmp_path / "count", root / "a") for _ in range(3)]
    assert all(process.wait() == 0 for process in processes)
    assert (tmp_path / "count").read_text() == "x"
    assert names(root) == ["a"]


def test_what_killed_processes_left_is_cleared_and_what_is_filled_now_is_not(tmp_path: Path) -> None:
    root = tmp_path / "root"
    made_once(root / "kept", write("kept"))
    made_once(root / "dead", write("dead"))
    shutil.rmtree(root / "dead")
    (root / ".writing-dead").mkdir()
    (root / ".writing-kept").mkdir()  # as where one was killed while it mended the folder
    process = _busy(tmp_path, root / "a")
    clear_scratch(root)
    assert names(root) == [".writing-a", "kept"]
    assert sorted(path.name for path in root.glob("*.lock")) == ["a.lock", "kept.lock"]
    process.kill()
    process.wait()
