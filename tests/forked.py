"""Processes that are forked from a test: they have everything imported, which is most of what a fresh one does."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate.state import AcceleratorState


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Args:
        code: Its exit code; negative where a signal ended it.
        out: What it wrote to standard output and standard error.
    """

    code: int
    out: str


def forked(act: Callable[[], object], place: Path) -> Ended:
    """A process of its own that does one thing, with what it says in a file of ``place``."""
    [ended] = _ended({started(act, place / "said"): place / "said"})
    return ended


def together(act: Callable[[], object], place: Path) -> list[Ended]:
    """Two processes that do the same thing, and are told of each other as torchrun does it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    files = [place / "said-0", place / "said-1"]
    ranks = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    return _ended({started(act, file, **rank): file for rank, file in zip(ranks, files, strict=True)})


def started(act: Callable[[], object], said: Path, **environment: str) -> int:
    """A process that has begun to do one thing, and says what it does in a file."""
    process = os.fork()
    if process:
        return process
    code: object = 1
    try:
        with said.open("w", encoding="utf-8") as file:
            sys.stdout = sys.stderr = file
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            os.environ.update(environment)
            AcceleratorState._reset_state(reset_partial_state=True)  # what this process was to earlier tests
            try:
                act()
                code = 0
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                traceback.print_exc()
            file.flush()
    finally:
        os._exit(code if isinstance(code, int) else 1)


def _ended(processes: Mapping[int, Path]) -> list[Ended]:
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    return [Ended(code, file.read_text()) for code, file in zip(codes, processes.values(), strict=True)]
