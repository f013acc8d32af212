"""How commands end that nobody reads, that are interrupted early, or whose places cannot be read or written."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from malora_cli import __main__
from malora_cli.cli import main
from malora_cli.cli._terminal import SafeConsole, say
from malora_cli.errors import RunError
from malora_cli.recipe.settings import file_name_from
from malora_cli.results import TaskLoss, TrainEvent
from malora_cli.train import processes
from malora_cli.train.stopping import StopRequest
from malora_cli.train.view import PlainView

LONG = "n" * 300


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


# ---------------------------------------------------------------- nobody reads


@pytest.fixture
def unread() -> Iterator[Any]:
    """A pipe whose reader is gone, as after `| head`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as file:
        yield file


def test_training_goes_on_where_nobody_reads(unread: Any) -> None:
    view = PlainView(SafeConsole(file=unread))
    event = TrainEvent(
        step=1,
        seconds=1.0,
        tasks={"a": TaskLoss(nats=1.5, tokens=3, examples=2)},
        learning_rate=0.1,
        tokens_per_second=5.0,
    )
    with view.running(2, {"a": 1.0}):
        view.tick(1)
        with pytest.warns(UserWarning, match="nobody reads what is printed any more; training goes on"):
            view.show(event)
        view.show(event)  # and is told of it once


class Lost(io.TextIOWrapper):
    """A file that cannot be written."""

    number = errno.EIO

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


def test_training_goes_on_where_its_output_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lost, "number", errno.ENOSPC)
    with (tmp_path / "log").open("wb") as raw:
        view = PlainView(SafeConsole(file=Lost(raw)))
        with pytest.warns(UserWarning, match=r"standard output cannot be written \(No space left on device\)"):
            view._print("line")
        view._print("line")


def test_a_terminal_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    with (tmp_path / "terminal").open("wb") as raw:
        console = SafeConsole(file=Lost(raw))
        console.print("line")
        assert console.quiet
        console.print("line")


def test_a_line_that_nobody_reads_is_no_error(unread: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", unread)
    say("one")
    say("two")


# ---------------------------------------------------------------- signals


def test_a_closed_terminal_that_is_ignored_stays_so() -> None:
    """As of a process that `nohup` has started."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal is None
            signal.raise_signal(signal.SIGTERM)
            assert stop.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("before", "during"), [(signal.default_int_handler, signal.SIG_DFL), (signal.SIG_IGN, signal.SIG_IGN)]
)
def test_an_interrupt_while_the_command_is_imported_is_silent(
    before: Any, during: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Imported(ModuleType):
        @property
        def main(self) -> Any:
            seen.append(signal.getsignal(signal.SIGINT))
            return lambda: seen.append(signal.getsignal(signal.SIGINT))

    monkeypatch.setitem(sys.modules, "malora_cli.cli", Imported("malora_cli.cli"))
    kept = signal.signal(signal.SIGINT, before)
    try:
        __main__.main()
    finally:
        signal.signal(signal.SIGINT, kept)
    assert seen[0] is during
    assert seen[-1] is before


# ---------------------------------------------------------------- places


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", LONG],
        ["check", f"{LONG}.yaml"],
        ["eval", LONG],
        ["report", "x", "--runs", LONG],
        ["merge-export", LONG],
        ["compare", "runs", LONG, LONG],
        ["recipes", "cp", "quickstart", LONG],
        ["recipes", "cp", "quickstart", f"{LONG}/x.yaml"],
    ],
    ids=" ".join,
)
def test_names_that_are_too_long(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(": File name too long")
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_run_has_room_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "quickstart", f"output.name={LONG}", "--dry-run") == 2
    assert "a run's name becomes a folder: at most 200 letters" in capsys.readouterr().err
    assert len(file_name_from(LONG)) == 200


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_processes_that_are_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PartialState", lambda **_: None)  # which finds no launcher
    for other in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(other, raising=False)
    processes.meet()
    monkeypatch.setenv(name, "x")
    with pytest.raises(RunError, match=rf"^{name}: got 'x', which is not a number\. Launchers set it"):
        processes.meet()
    monkeypatch.setenv(name, "2")
    with pytest.raises(RunError, match=rf"^{name}: got 2, and .*unset it to train in one process"):
        processes.meet()


def test_the_end_looks_for_no_garbage_in_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With PyTorch loaded that took three seconds of each command."""
    loaded: list[list[int]] = []

    def command() -> None:
        loaded.extend([number] for number in range(1000))
        raise SystemExit(0)

    monkeypatch.setattr("malora_cli.cli.main", command)
    monkeypatch.setattr("gc.freeze", lambda: frozen.append(len(loaded)))
    frozen: list[int] = []
    with pytest.raises(SystemExit):
        __main__.main()
    assert frozen == [1000]
