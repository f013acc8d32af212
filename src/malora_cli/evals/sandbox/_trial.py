"""One answer on trial: two interpreters, and the lines that go between them.

It is run by the keeper, a small process of one thread, whose timer ends whatever takes too long.
"""

from __future__ import annotations

import ast
import functools
import marshal
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from malora_cli.evals.sandbox import _inside
from malora_cli.evals.sandbox._base import Backend, Cell, Limits
from malora_cli.evals.sandbox._outcome import Job, Kind, Outcome
from malora_cli.evals.sandbox._parting import leaves_no_trace

_LONGEST_LINE = _inside.MOST_CHARACTERS + 2
_TICK_SECONDS = 0.1
_LONGEST_VERDICT = 4096
_READY, _TOGETHER = b"('ready',)\n", b"('together',)\n"
_KINDS: dict[str, Kind] = {"MemoryError": "memory", "PermissionError": "blocked"}


class _StoppedError(Exception):
    """A cell has gone over a limit, or has ended."""

    def __init__(self, kind: Kind, reason: str) -> None:
        self.outcome = Outcome(kind, reason)


@functools.cache
def _program() -> bytes:
    source = Path(_inside.__file__).read_text("utf-8")
    return marshal.dumps(compile(f"{source}\nrun()\n", "inside.py", "exec"))


class Court:
    """A candidate and a checker that have been started ahead, each in an empty folder.

    Each answer gets a candidate of its own. A checker goes on to the next one where tests like its last cannot have
    left anything behind.
    """

    def __init__(self, backend: Backend, limits: Limits) -> None:
        # A checker that has worked for earlier answers still has all of its time for the next.
        self.limits = {"candidate": limits, "checker": replace(limits, seconds=limits.seconds + 1)}
        self.backend = backend
        self.folder = Path(tempfile.mkdtemp(prefix="malora-code-"))
        self.cells: dict[str, Cell] = {}
        self._served_seconds = 0.0
        try:
            self.ready()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End what runs, and remove its folders."""
        self._end(*self.cells)
        shutil.rmtree(self.folder, ignore_errors=True)

    def ready(self) -> None:
        """Start what is not there, so that the next answer finds it started."""
        for role, limits in self.limits.items():
            if role not in self.cells:
                folder = self.folder / role
                folder.mkdir()
                self.cells[role] = self.backend.start(folder, limits)
                _write(self.cells[role], _program())

    def run(self, job: Job) -> Outcome:
        """Try one answer."""
        outcome = None if job.names is None else self._try(self._parted, job)
        if outcome is not None:
            return outcome
        outcome = self._try(self._together, job)
        return replace(outcome or Outcome("failed"), together=True)

    def _try(self, way: Callable[[Job], Outcome | None], job: Job) -> Outcome | None:
        self.ready()
        started = time.monotonic()
        try:
            with self._limited():
                outcome = way(job)
            self._served_seconds += time.monotonic() - started
            keeps = self._served_seconds < 1 and not job.prompt and leaves_no_trace(job.tests)
        except _StoppedError as stopped:
            outcome, keeps = stopped.outcome, False
        self._end("candidate")
        if not keeps:
            self._end("checker")
        return outcome

    def _end(self, *roles: str) -> None:
        for role in roles:
            self.cells.pop(role).end()
            shutil.rmtree(self.folder / role, ignore_errors=True)
            if role == "checker":
                self._served_seconds = 0.0

    def _parted(self, job: Job) -> Outcome | None:
        """Tests against functions that are elsewhere; None where they hand over what no pipe can carry."""
        candidate, checker = self.cells["candidate"], self.cells["checker"]
        word = secrets.token_hex(16)
        _tell(candidate, ("candidate", job.code))
        if (loaded := self._read(candidate)) != _READY:
            return _outcome(loaded, word)
        _tell(checker, ("checker", job.prompt, job.tests, job.names, word))
        while (line := self._read(checker)).startswith(b"('call', "):
            _write(candidate, line)
            _write(checker, _literal(self._read(candidate)))
        return None if line == _TOGETHER else _outcome(line, word)

    def _together(self, job: Job) -> Outcome:
        """Code and tests in one interpreter."""
        cell, word = self.cells["candidate"], secrets.token_hex(16)
        _tell(cell, ("together", job.code))
        if (loaded := self._read(cell)) != _READY:
            return _outcome(loaded, word)
        _tell(cell, (job.tests, word))
        return _outcome(self._read(cell), word)

    def _read(self, cell: Cell) -> bytes:
        line = cell.stdout.readline(_LONGEST_LINE)
        if line.endswith(b"\n"):
            return line
        if line:
            raise _StoppedError("failed", "an answer of more than a million characters")
        raise _StoppedError(*_end_of(cell.end(patience=1.0)))

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """Look every moment at what the system does not limit."""
        limits = self.limits["candidate"]
        ends = time.monotonic() + limits.seconds

        def look(*_: Any) -> None:
            if time.monotonic() > ends:
                raise _StoppedError("timeout", f"more than {limits.seconds:g} seconds")
            if any(cell.resident() > limits.memory for cell in self.cells.values()):
                raise _StoppedError("memory", f"more than {limits.memory >> 20} MiB")
            if _size(self.folder) > limits.folder_bytes:
                raise _StoppedError("blocked", f"files of more than {limits.folder_bytes >> 20} MiB")

        before = signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, _TICK_SECONDS, _TICK_SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _tell(cell: Cell, message: tuple[Any, ...]) -> None:
    _write(cell, ascii(message).encode() + b"\n")


def _write(cell: Cell, line: bytes) -> None:
    with suppress(BrokenPipeError):  # the read that follows finds out why
        cell.stdin.write(line)
        cell.stdin.flush()


def _literal(line: bytes) -> bytes:
    """What the candidate says, if it is no more than a literal: from here on it can be taken for one."""
    try:
        return ascii(ast.literal_eval(line.decode())).encode() + b"\n"
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise _StoppedError("failed", "an answer that is not of built-in types") from None


def _outcome(line: bytes, word: str) -> Outcome:
    """What an interpreter says at the end; none that does not know the word can say that an answer passes."""
    with suppress(ValueError, SyntaxError, TypeError):
        said = ast.literal_eval(line[:_LONGEST_VERDICT].decode())
        if said == ("passed", word):
            return Outcome("passed")
        _, name, reason = said
        return Outcome(_KINDS.get(name, "failed"), f"{name}: {reason}")
    return Outcome("failed", "an answer that cannot be understood")


def _end_of(status: int) -> tuple[Kind, str]:
    """Why an interpreter has ended without an answer."""
    signals = {status, status - 128, -status}
    if signal.SIGXCPU in signals:
        return "timeout", "too much processor time"
    if signal.SIGKILL in signals:
        return "memory", "more memory than there is"
    if signals & {signal.SIGXFSZ, signal.SIGSYS}:
        return "blocked", "a call that is not allowed"
    return "crashed", f"the interpreter ended with status {status}"


def _size(folder: Path) -> int:
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # it may be gone by now
                size += (Path(root) / name).lstat().st_size
    return size
