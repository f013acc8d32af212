"""Landlock for files and signals, seccomp for the rest: no root, no namespaces, so it works within Docker too.

Landlock alone leaves open what the kernel's version does not rule, such as UDP, and signals before Linux 6.12; the
filter of calls closes that, and forbids new processes, so that nothing can be left behind.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import sys
from pathlib import Path

from malora_cli.evals.sandbox._base import Backend, Cell, Limits, PopenCell, give_up_root, interpreter, limit, readable

_PR_SET_PDEATHSIG = 1


class Landlock(Backend):
    """A process that gives up its rights before it becomes the interpreter."""

    rank = 1
    wants = "Linux 5.13 or newer with Landlock, and: pip install 'malora[sandbox]'"

    def lacks(self) -> str | None:
        """Linux, or one of the two libraries."""
        if sys.platform != "linux":
            return "it is a part of Linux"
        missing = [name for name in ("landlockpy", "seccompy") if importlib.util.find_spec(name) is None]
        return f"{missing[0]} is not installed" if missing else None

    def start(self, folder: Path, limits: Limits) -> Cell:
        """An interpreter that reads its own library and writes into its folder."""
        import seccompy
        from landlockpy import AccessFS, Ruleset, Scope, supported

        from malora_cli.evals.sandbox._seccomp import denied

        reads = AccessFS.READ_FILE | AccessFS.READ_DIR | AccessFS.EXECUTE
        devices = AccessFS.MAKE_CHAR | AccessFS.MAKE_BLOCK | AccessFS.MAKE_SOCK | AccessFS.EXECUTE
        if not (supported() and seccompy.supported()):  # asked here, since it loads what the child cannot
            raise OSError("this system has no Landlock or no seccomp")
        calls, libc = denied(), ctypes.CDLL(None)
        # Made ready here: what the child does before it becomes the interpreter is paid for in pages that it copies.
        with Ruleset(scoped=Scope.SIGNAL | Scope.ABSTRACT_UNIX_SOCKET) as rules:
            for path in readable():
                rules.allow_path(path, reads if path.is_dir() else AccessFS.READ_FILE)
            rules.allow_path(os.devnull, AccessFS.READ_FILE | AccessFS.WRITE_FILE)
            rules.allow_path(folder, ~devices)

            def confine() -> None:
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                limit(limits)
                give_up_root()
                rules.restrict()
                calls.load()

            return PopenCell(interpreter(), folder, confine)


BACKEND = Landlock
