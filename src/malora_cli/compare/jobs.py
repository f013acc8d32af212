"""Several runs at a time, each by ``malora train`` in a process of its own: one a GPU, or some on the cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from malora_cli.compare.planner import PlannedRun
from malora_cli.errors import RecipeError


def gpus() -> list[str]:
    """What each GPU is called that may be used, as CUDA_VISIBLE_DEVICES has it."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def jobs_wanted(text: str) -> int:
    """``auto`` as a number: one a GPU, one in all on a CPU.

    Raises:
        RecipeError: It is neither that nor a number above 0.
    """
    if text == "auto":
        return max(1, len(gpus()))
    if not text.isdecimal() or int(text) < 1:
        raise RecipeError(f"'{text}' is not a number of jobs", where="--jobs", fix="Write auto, or a number above 0.")
    return int(text)


def train_in_processes(runs: Sequence[PlannedRun], jobs: int, tell: Callable[[str], None]) -> None:
    """Train runs, some of which may have begun, as many at a time as there are jobs.

    Each writes what it has to say beside its run, into ``NAME.log``.

    Args:
        runs: Runs that are not finished.
        jobs: How many at a time; they take turns on the GPUs, or share the cores.
        tell: Told what happens to each run.
    """
    cards = gpus()
    free = SimpleQueue[int]()
    for slot in range(jobs):
        free.put(slot)

    def trained(run: PlannedRun) -> None:
        slot = free.get()
        try:
            place = {"CUDA_VISIBLE_DEVICES": cards[slot % len(cards)]} if cards else {}
            threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
            log = run.folder.with_name(f"{run.name}.log")
            tell(f"{run.folder}: training; see {log}")
            code = _train(run, log, {**threads, **os.environ, **place})
            tell(f"{run.folder}: {'trained' if code == 0 else f'ended with exit code {code}'}")
        finally:
            free.put(slot)

    pool = ThreadPoolExecutor(jobs)
    try:
        for done in [pool.submit(trained, run) for run in runs]:
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, which the processes hear as well, no other is begun


def _train(run: PlannedRun, log: Path, environment: dict[str, str]) -> int:
    """The exit code of the command that trains or resumes a run."""
    command = run.train_command(resume=(run.folder / "manifest.json").is_file())
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        arguments = [sys.executable, "-m", "malora_cli", *command[1:]]
        return subprocess.run(arguments, stdout=file, stderr=file, env=environment, check=False).returncode
