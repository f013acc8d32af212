"""What a backend is: a way to start an interpreter behind a boundary that the system itself keeps."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import math
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

with contextlib.suppress(ImportError):  # Windows has none, and no backend
    import resource

_PR_SET_SECUREBITS = 28
_NOROOT_LOCKED = 0b11

#: What an interpreter runs first: the program that it is given comes down the pipe, compiled.
BOOT = "import sys, marshal; exec(marshal.load(sys.stdin.buffer))"


@dataclass(frozen=True)
class Limits:
    """What one interpreter may use.

    Args:
        seconds: Of wall clock for a row, and of processor time for each interpreter.
        memory: Bytes of address space.
        processes: At once; backends that can forbid new ones altogether do so.
        file_bytes: Of one file.
        folder_bytes: Of all files.
        files: Open at once.
    """

    seconds: float = 10.0
    memory: int = 512 << 20
    processes: int = 16
    file_bytes: int = 1 << 20
    folder_bytes: int = 16 << 20
    files: int = 64


class Cell(ABC):
    """An interpreter that has been started, and the two ends of its pipe."""

    stdin: IO[bytes]
    stdout: io.BufferedReader

    @abstractmethod
    def end(self, patience: float = 0.0) -> int:
        """End it and all that it started, a while after; its exit status, below 0 for the signal that ended it."""

    def resident(self) -> int:
        """Bytes of memory it uses now, where no limit of the system holds it; else 0."""
        return 0


class Backend(ABC):
    """A boundary: one file each, found by discovery.

    The tests that every backend has to pass before it is used decide whether it is one; nothing here is believed.
    """

    #: Backends are tried in this order.
    rank: ClassVar[int]
    #: What to install or switch on where it is not there.
    wants: ClassVar[str]

    @abstractmethod
    def lacks(self) -> str | None:
        """Why it cannot even be tried here, or None."""

    @abstractmethod
    def start(self, folder: Path, limits: Limits) -> Cell:
        """Start an interpreter whose working directory is an empty folder.

        Raises:
            OSError: It cannot be started.
        """


class PopenCell(Cell):
    """An interpreter that is a child of this process and the leader of a session of its own."""

    def __init__(
        self, arguments: Sequence[str], folder: Path, confine: Callable[[], None], keep: Sequence[int] = ()
    ) -> None:
        # A fork is safe here: whoever starts cells is a small process of one thread.
        self._process = subprocess.Popen(
            arguments,
            cwd=folder,
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=confine,
            pass_fds=keep,
        )
        assert self._process.stdin is not None
        assert isinstance(self._process.stdout, io.BufferedReader)
        self.stdin, self.stdout = self._process.stdin, self._process.stdout

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    def end(self, patience: float = 0.0) -> int:
        """Kill its session, once it has had its time to end by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        for stream in (self.stdin, self.stdout):
            with contextlib.suppress(OSError):
                stream.close()
        return status


@functools.cache
def interpreter() -> list[str]:
    """How an interpreter is started that takes nothing from its surroundings."""
    return [os.path.realpath(getattr(sys, "_base_executable", sys.executable)), "-I", "-S", "-c", BOOT]


@functools.cache
def readable() -> list[Path]:
    """What an interpreter has to read: itself, its standard library and the system's libraries."""
    own = [sys.base_prefix, sys.base_exec_prefix, str(Path(interpreter()[0]).parent)]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/dev/urandom"]
    return [path for path in map(Path, dict.fromkeys([*own, *system])) if path.exists() and path != Path("/")]


def limit(limits: Limits, pid: int | None = None) -> None:
    """Hold this process, or another one, and all that it becomes, to what the system can count."""
    for kind, most in (
        (resource.RLIMIT_CPU, math.ceil(limits.seconds)),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.files),
        (resource.RLIMIT_CORE, 0),
        *([(resource.RLIMIT_AS, limits.memory)] if sys.platform == "linux" else []),  # others refuse it
    ):
        # Who runs out of time is told first, so that it can be told from who runs out of memory.
        bounds = (most, most + 1) if kind == resource.RLIMIT_CPU else (most, most)
        if pid is None:
            resource.setrlimit(kind, bounds)
        else:
            resource.prlimit(pid, kind, bounds)


def give_up_root() -> None:
    """Root's name without its powers, for all that this process becomes or starts."""
    if os.getuid() == 0:
        ctypes.CDLL(None).prctl(_PR_SET_SECUREBITS, _NOROOT_LOCKED)
