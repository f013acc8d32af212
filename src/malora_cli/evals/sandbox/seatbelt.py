"""macOS's own boundary, ``sandbox-exec``: no system call limits memory there, so that is watched."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from malora_cli.evals.sandbox._base import Backend, Cell, Limits, PopenCell, interpreter, limit, readable

_PROFILE = """(version 1)
(deny default)
(allow process-exec (literal {interpreter}))
(allow sysctl-read)
(allow file-read-metadata)
(allow file-read* (literal "/") (subpath "/usr/lib") (subpath "/System/Library") {readable})
(allow file-write* (literal "/dev/null"))
(allow file-read* file-write* (subpath {folder}))
(allow signal (target self))
"""


class Seatbelt(Backend):
    """A process under a profile that allows what an interpreter needs."""

    rank = 4
    wants = "macOS, whose sandbox-exec needs no installation"

    def lacks(self) -> str | None:
        """The program, which only macOS has."""
        if sys.platform != "darwin":
            return "it is a part of macOS"
        return "'sandbox-exec' not found" if shutil.which("sandbox-exec") is None else None

    def start(self, folder: Path, limits: Limits) -> Cell:
        """An interpreter that reads its own library, writes into its folder and starts nothing."""
        arguments = ["sandbox-exec", "-p", profile(folder), *interpreter()]
        return _Measured(arguments, folder, lambda: limit(limits))


class _Measured(PopenCell):
    def resident(self) -> int:
        """What the process uses; it cannot have started another."""
        import psutil

        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0


def profile(folder: Path) -> str:
    """What is allowed; all else is not."""
    own = " ".join(f"(subpath {_quoted(path.resolve())})" for path in readable())
    return _PROFILE.format(interpreter=_quoted(Path(interpreter()[0])), readable=own, folder=_quoted(folder.resolve()))


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


BACKEND = Seatbelt
