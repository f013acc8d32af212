"""Landlock and seccomp with a supervisor, by the library ``sandlock``: processes and memory are counted as one."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from malora_cli.evals.sandbox._base import Backend, Cell, Limits, give_up_root, interpreter, limit, readable
from malora_cli.evals.sandbox._seccomp import metadata_calls


class Sandlock(Backend):
    """A process that the library's supervisor watches."""

    rank = 3
    wants = "Linux 6.12 or newer, not within Docker's default profile, and: pip install 'malora[sandbox]'"

    def lacks(self) -> str | None:
        """Linux, or the library."""
        if sys.platform != "linux":
            return "it is for Linux"
        return "sandlock is not installed" if importlib.util.find_spec("sandlock") is None else None

    def start(self, folder: Path, limits: Limits) -> Cell:
        """An interpreter that reads its own library and writes into its folder."""
        give_up_root()
        return _Watched(folder, limits)


class _Watched(Cell):
    def __init__(self, folder: Path, limits: Limits) -> None:
        from sandlock import Sandbox, StdioMode

        self._sandbox = Sandbox(
            fs_readable=[str(path) for path in readable()],
            fs_writable=[str(folder), os.devnull],
            cwd=str(folder),
            clean_env=True,
            env={"HOME": str(folder)},
            max_memory=limits.memory,
            max_processes=limits.processes,
            no_coredump=True,
            extra_deny_syscalls=[*metadata_calls(), "prlimit64"],
        )
        try:
            self._process = self._sandbox.popen(interpreter(), StdioMode.PIPED, StdioMode.PIPED, StdioMode.NULL)
        except RuntimeError as error:
            raise OSError(str(error)) from None
        # Before it is given anything to run; a little less memory for one than for all, so that it hears of it.
        limit(replace(limits, memory=limits.memory * 15 // 16), self._process.pid)
        self.stdin, self.stdout = self._process.stdin, io.BufferedReader(self._process.stdout)

    def end(self, patience: float = 0.0) -> int:
        """Kill it, once it has had its time to end by itself."""
        from sandlock import ExitReason

        if patience == 0.0:
            self._process.kill()
        result = self._process.wait(max(patience, 0.01))
        for stream in (self.stdin, self.stdout):
            with contextlib.suppress(OSError):
                stream.close()
        if result.reason is ExitReason.KILLED:  # as the supervisor does where memory runs out
            return -signal.SIGKILL
        return -result.signal if result.signal > 0 else result.exit_code


BACKEND = Sandlock
