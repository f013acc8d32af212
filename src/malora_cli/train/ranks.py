"""What a launcher has told this process of the others. Without torch, so that mistakes are told at once."""

from __future__ import annotations

import os

from malora_cli.characters import plural
from malora_cli.errors import RunError

LAUNCH = "Launchers set it: train by --nproc, torchrun or accelerate, or unset it to train in one process."


def world_size() -> int:
    """How many processes the launcher has started."""
    size = _given("WORLD_SIZE", 1)
    if size < 1:
        raise RunError(f"got {size}", where="WORLD_SIZE", fix=LAUNCH)
    return size


def rank() -> int:
    """Which of them this is, from 0."""
    return _given("RANK", 0)


def processes_here() -> int:
    """How many of them are on this machine, or in what the launcher takes for one."""
    return _given("LOCAL_WORLD_SIZE", 1)


def writes() -> bool:
    """Whether this is the one process that writes and shows things."""
    return rank() == 0


def too_few_gpus(processes: int, there: int, where: str) -> RunError:
    """What is raised where there are fewer GPUs on this machine than processes."""
    are = "is" if there == 1 else "are"
    what = f"got {processes}, and there {are} {plural(there, 'GPU')}, one for each process"
    return RunError(what, where=where, fix=f"Take {there} at most.")


def _given(name: str, otherwise: int) -> int:
    """A number that launchers leave in the environment."""
    text = os.environ.get(name, "")
    if text and not text.isdecimal():
        raise RunError(f"got '{text}', which is not a number", where=name, fix=LAUNCH)
    return int(text or otherwise)
