"""Namespaces of its own by ``bwrap``: an interpreter that sees no other file, process or network."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from malora_cli.evals.sandbox._base import Backend, Cell, Limits, PopenCell, interpreter, limit, readable


class Bubblewrap(Backend):
    """A root of its own, made of the interpreter's folders and an empty one."""

    rank = 2
    wants = "bubblewrap (apt install bubblewrap), and a system that allows user namespaces"

    def lacks(self) -> str | None:
        """The program."""
        if sys.platform != "linux":
            return "it is a program of Linux"
        return "there is no 'bwrap'" if shutil.which("bwrap") is None else None

    def start(self, folder: Path, limits: Limits) -> Cell:
        """An interpreter in namespaces of its own; the one that started it takes all others with it."""
        from malora_cli.evals.sandbox._seccomp import denied

        with tempfile.TemporaryFile() as program:
            program.write(denied().program)
            program.seek(0)
            bound = [text for path in readable() if path.is_dir() for text in ("--ro-bind", str(path), str(path))]
            arguments = [
                *("bwrap", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--clearenv"),
                *(*bound, "--dev", "/dev", "--bind", str(folder), "/work", "--chdir", "/work"),
                *("--seccomp", str(program.fileno()), "--", *interpreter()),
            ]
            return PopenCell(arguments, folder, lambda: limit(limits), keep=(program.fileno(),))


BACKEND = Bubblewrap
