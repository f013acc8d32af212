"""Run folders that two want at once, that a kill left half begun, or that cannot be written."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from malora_cli.errors import RunError
from malora_cli.evals import evaluate
from malora_cli.reports import check_writable, write_report
from malora_cli.results import (
    EvalResult,
    RunRecord,
    Scores,
    TaskEval,
    check_not_written,
    read_json,
    why_unwritable,
    write_text,
    writing,
)
from malora_cli.results.files import flush
from malora_cli.train.folder import told_of_the_disk
from run_records import manifest, run_record

_HOLDER = (
    "import sys, time\nfrom pathlib import Path\nfrom malora_cli.results import RunRecord, writing\n"
    "with writing(RunRecord(Path(sys.argv[1]))):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return RunRecord(tmp_path / "runs" / "r")


# ---------------------------------------------------------------- two at once


def _write_a_manifest(record: RunRecord) -> None:
    with writing(record):
        record.write_manifest(manifest())
        check_not_written(record)


def test_the_second_writer_is_told_who_the_first_is(record: RunRecord) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(record.path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        for attempt in (lambda: writing(record).__enter__(), lambda: check_not_written(record)):
            with pytest.raises(RunError) as caught:
                attempt()
            assert re.fullmatch(
                rf"{record.path}: another process is writing this run \(process {holder.pid} on "
                rf"{re.escape(socket.gethostname())}, since \d{{4}}-\S+\)\. Wait until it is done, or take another "
                rf"name: output\.name=r-2",
                str(caught.value),
            )
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    check_not_written(record)
    assert record.free, "what a killed writer leaves is no run, and blocks nobody"
    with writing(record):
        assert read_json(record.writer_path)["process"] == os.getpid()
    assert not record.lock_path.exists()


def test_nothing_is_left_where_nothing_was_written(record: RunRecord) -> None:
    with pytest.raises(KeyError), writing(record):
        raise KeyError
    assert not record.path.parent.exists()
    record.path.mkdir(parents=True)
    with writing(record):
        assert record.free
    assert list(record.path.iterdir()) == []
    with writing(record):
        record.write_manifest(manifest())
    assert [path.name for path in record.path.iterdir()] == ["manifest.json"]


def test_a_file_system_without_locks_is_said(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match="this file system has no locks"):
        _write_a_manifest(record)
    assert record.exists


def test_a_run_that_cannot_be_locked_is_an_error_of_the_system(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(record.path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(OSError, match="Read-only"), writing(record):
        pass


@pytest.mark.parametrize(
    ("names", "free"),
    [
        ([], True),
        ([".lock"], True),
        ([".lock", ".writer.json", f".malora-{socket.gethostname()}-1.tmp"], True),
        ([".lock", ".writer.json", "recipe.yaml"], True),
        (["recipe.yaml"], False),  # somebody keeps it there
        ([".lock", ".writer.json", "notes.txt"], False),
        (["manifest.json"], False),
    ],
)
def test_what_a_killed_start_leaves_is_known(names: list[str], free: bool, record: RunRecord) -> None:
    assert record.free
    record.path.mkdir(parents=True)
    for name in names:
        (record.path / name).touch()
    assert record.free is free
    assert not RunRecord(record.path / name if names else Path(__file__)).free


# ---------------------------------------------------------------- files


def _ended_process() -> int:
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_scratch_files_are_of_one_process_and_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, mine = socket.gethostname(), os.getpid()
    ended = tmp_path / f".malora-{host}-{_ended_process()}.tmp"
    living, elsewhere = tmp_path / f".malora-{host}-{os.getppid()}.tmp", tmp_path / ".malora-elsewhere-1.tmp"
    for path in (ended, living, elsewhere):
        path.write_text("half")
    seen: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (seen.extend(path.name for path in tmp_path.iterdir()), fsync(file)))
    write_text(tmp_path / "x", "whole")
    assert f".malora-{host}-{mine}.tmp" in seen
    assert {path.name for path in tmp_path.iterdir()} == {"x", living.name, elsewhere.name}


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_text(tmp_path / "x", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_text(tmp_path / "x", "new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "x"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x": "old"}
    with pytest.raises(OSError, match="No space left"):
        flush(tmp_path)


def test_whether_a_folder_can_be_written(tmp_path: Path) -> None:
    assert why_unwritable(tmp_path) is None
    assert why_unwritable(tmp_path / "a" / "b") is None
    (tmp_path / "file").touch()
    assert why_unwritable(tmp_path / "file" / "b") == "Not a directory"
    assert why_unwritable(tmp_path / ("n" * 300)) == "File name too long"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize(
    ("error", "where", "why", "mend"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), "x/y", "No space left on device", "Free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), None, "Disk quota exceeded", "Free some space"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            None,
            "No space left on device",
            "Free some space",
        ),
        (OSError(errno.EIO, "Input/output error"), None, "Input/output error", "Mend that"),
    ],
)
def test_a_disk_that_fails_is_one_line_with_what_is_safe(
    error: Exception, where: str | None, why: str, mend: str, record: RunRecord
) -> None:
    def fail() -> str:
        with pytest.raises(RunError) as caught, told_of_the_disk(record):
            raise error
        return str(caught.value)

    assert fail() == f"{record.path}: the run folder cannot be written ({why}). Set output.folder to another."
    record.write_manifest(manifest())
    line = f"{where or record.path}: this cannot be read or written ({why}). {{}}. {mend}"
    again = f"and go on with: malora train {record.recipe_path} --resume"
    assert fail().startswith(line.format("No checkpoint has been saved yet"))
    assert fail().endswith(again)
    for step in (2, 4):
        (record.checkpoints_dir / f"step-{step:07d}").mkdir(parents=True)
    assert fail().startswith(line.format("The checkpoint of step 4 is whole"))


@pytest.mark.parametrize(
    "error", [OSError("the hub has no such file"), SafetensorError("HeaderTooSmall"), ValueError()]
)
def test_other_errors_are_no_matter_of_the_disk(error: Exception, record: RunRecord) -> None:
    with pytest.raises(type(error)) as caught, told_of_the_disk(record):
        raise error
    assert caught.value is error


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"steps": 3', '"steps": "many"', r"steps: Input should be a valid integer, .*, got 'many'"),
        ('"train_seconds": 0.0', '"train_seconds": NaN', r"not valid JSON: NaN"),
        ('"train_seconds": 0.0', '"train_seconds": 1e999', r"train_seconds: Input should be a finite number, got inf"),
        ('"status": "finished"', '"status": "lost"', r"status: Input should be 'running' or 'finished', got 'lost'"),
        ('"versions": {}', '"versions": ' + "[" * 100_000 + "]" * 100_000, r"not valid JSON: nested too deeply"),
        ('"versions": {}', '"versions": ' + "[" * 200 + "]" * 200, r"versions: Input should be .*, got \[\[.*\.\.\..*"),
        ('"rows": 1', '"rows": null', r"train_data\.a\.rows: Input should be a valid integer, got None; 1 more"),
        ('"versions": {},', "", r"versions: Field required"),
        (
            '"versions": {},',
            '"versions": {}',
            r"not valid JSON: Expecting ',' delimiter: line \d+ column \d+ \(char \d+\)",
        ),
    ],
)
def test_a_damaged_manifest_names_the_key_and_the_value(old: str, new: str, reason: str, tmp_path: Path) -> None:
    record = run_record(tmp_path, "r")
    text = record.manifest_path.read_text()
    assert old in text
    record.manifest_path.write_text(text.replace(old, new))
    with pytest.raises(RunError) as caught:
        _ = record.manifest
    line = rf"{record.manifest_path}: the manifest cannot be read \({reason}\)"
    assert re.fullmatch(line, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("train: 5\n", "train: not a mapping, got 5"), ("a: " + "[" * 5000, "values are nested more than 64 deep")],
)
def test_a_recipe_of_another_shape_is_one_line(text: str, reason: str, tmp_path: Path) -> None:
    record = run_record(tmp_path, "r")
    record.recipe_path.write_text(text)
    with pytest.raises(RunError, match=re.escape(f"the recipe cannot be read ({reason}")):
        _ = record.recipe


# ---------------------------------------------------------------- evaluations and reports


def _full(*names: str) -> Callable[[Path, str], None]:
    """A disk that has no room for some files."""

    def write(path: Path, text: str) -> None:
        if path.name.endswith(names):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_text(path, text)

    return write


@pytest.mark.parametrize(
    ("no_room_for", "kept", "said"),
    [
        ("predictions.jsonl", 1, r"Only \S+\.json is kept\."),
        (".json", 1, r"Only \S+\.predictions\.jsonl is kept\."),
        ((".jsonl", ".json"), 0, r"Nothing of this evaluation is kept\."),
    ],
)
def test_an_evaluation_on_a_full_disk_says_what_is_kept(
    no_room_for: str | tuple[str, ...], kept: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (no_room_for,) if isinstance(no_room_for, str) else no_room_for
    monkeypatch.setattr(evaluate, "write_text", _full(*names))
    monkeypatch.setattr("malora_cli.results.files.write_text", _full(*names))
    scores = Scores(score=0.5, loss=1.0)
    task = TaskEval(domain="x", metric="exact-match", rows=1, base=scores, adapter=scores)
    result = EvalResult(run="r", created="2025", step=1, limit=None, seconds=1.0, tasks={"a": task})
    with pytest.raises(RunError) as caught:
        evaluate._keep(tmp_path, result, ["{}\n"])
    line = (
        rf"{tmp_path}/\S+: it cannot be written \(No space left on device\)\. {said} Free some space there, or .*--out"
    )
    assert re.match(line, str(caught.value)), str(caught.value)
    assert len(list(tmp_path.iterdir())) == kept


def test_where_nothing_can_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    """`eval` and `report` as files stand for a file system for reading only, which root can be shown no other way."""
    record = run_record(tmp_path, "r")
    record.eval_dir.touch()
    record.report_path.parent.touch()
    with pytest.raises(RunError, match=r"eval: the evaluation cannot be written \(Not a directory\)\. .*--out FOLDER"):
        evaluate._check_writable(record.eval_dir)
    with pytest.raises(RunError, match=r"index.html: the report cannot be written \(Not a directory\)\. .*--out FILE"):
        check_writable(record)
    with pytest.raises(RunError, match=r"the report cannot be written \(File exists\)"):
        write_report(record)
    assert write_report(record, tmp_path / "elsewhere" / "page.html").read_text().startswith("<!doctype html>")
