"""Namespaces of its own by ``bwrap``: an interpreter that sees no other file, process or network."""

from __future__ import annotations

import os
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
        return "'bwrap' not found" if shutil.which("bwrap") is None else None

    def start(self, folder: Path, limits: Limits) -> Cell:
        """An interpreter in namespaces of its own; the one that started it takes all others with it."""
        from malora_cli.evals.sandbox._seccomp import denied

        with tempfile.TemporaryFile() as program:
            program.write(denied().program)
            program.seek(0)
            given = [text for path in readable() for text in ("--ro-bind", str(path), str(path))]
            arguments = [
                *("bwrap", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--clearenv"),
                *(*given, "--dev-bind", os.devnull, os.devnull, "--bind", str(folder), "/work", "--chdir", "/work"),
                *("--remount-ro", "/"),  # it lies in memory, which no limit would count
                *("--seccomp", str(program.fileno()), "--", *interpreter()),
            ]
            return PopenCell(arguments, folder, lambda: limit(limits), keep=(program.fileno(),))


BACKEND = Bubblewrap
