"""Several runs at a time, each by ``malora train`` in a process of its own: one a GPU, or some on the cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial
from itertools import takewhile
from queue import SimpleQueue
from signal import SIGTERM
from threading import Lock
from typing import IO, TYPE_CHECKING

from malora_cli.errors import RecipeError, StoppedError
from malora_cli.train.stopping import StopRequest

if TYPE_CHECKING:  # they take torch
    from malora_cli.compare.planner import Errand, PlannedRun
    from malora_cli.compare.run import SideBySide

#: Seconds after which it is looked whether this process was told to stop.
_LOOK_AGAIN = 0.2


def gpus(device: str = "auto") -> list[str]:
    """What each GPU is called that may be used, as CUDA_VISIBLE_DEVICES has it.

    Args:
        device: The recipe's ``model.device``; on a CPU none is used.
    """
    if device not in ("auto", "cuda"):
        return []
    import torch

    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    read = takewhile(lambda name: name != "-1", map(str.strip, named.split(",")))  # CUDA reads no further
    return [name for name in read if name]


def check_jobs(jobs: str, cpus_on_ray: int | None) -> None:
    """Make sure that jobs are a number, and not counted where Ray counts them.

    Raises:
        RecipeError: They are not.
    """
    if jobs == "auto":
        return
    if not jobs.isdecimal() or int(jobs) < 1:
        raise RecipeError(f"'{jobs}' is not a number of jobs", where="--jobs", fix="Write auto, or a number above 0.")
    if cpus_on_ray is not None:
        raise RecipeError(
            "on Ray, as many runs are trained at a time as the cluster has room for",
            where="--jobs",
            fix="Leave it out, and say with --cpus-per-run how many cores each takes.",
        )


def side_by_side(
    jobs: str, cpus_on_ray: int | None, tell: Callable[[str], None], device: str = "auto"
) -> SideBySide | None:
    """How several runs are trained at a time; None where it is one after another, here.

    Args:
        jobs: A number of processes on this machine; ``auto`` is one a GPU, one in all on a CPU.
        cpus_on_ray: Cores for each run on Ray; None does without Ray.
        tell: Told what happens to each run.
        device: The recipe's ``model.device``.

    Raises:
        RecipeError: Jobs are no number, or are counted where Ray counts them.
    """
    check_jobs(jobs, cpus_on_ray)
    if cpus_on_ray is None:
        wanted = max(1, len(gpus(device))) if jobs == "auto" else int(jobs)
        return partial(in_processes, jobs=wanted, tell=tell) if wanted > 1 else None
    from malora_cli.compare.on_ray import on_ray

    return partial(on_ray, cpus=cpus_on_ray, tell=tell)


def in_processes(
    errands: Sequence[Errand], look_at: Callable[[PlannedRun], None], *, jobs: int, tell: Callable[[str], None]
) -> None:
    """Train and evaluate runs, some of which may have begun, as many at a time as there are jobs.

    Each writes what it has to say beside its run, into ``NAME.log``. A single run is left to this process, whose
    terminal shows its progress.

    Args:
        errands: What is missing of each run.
        look_at: Given each run that was not told to stop, when its process has ended; what it raises ends the others.
        jobs: How many at a time; they take turns on the GPUs, or share the cores.
        tell: Told what happens to each run.

    Raises:
        StoppedError: This process was told to stop, and has told the others.
        MaloraError: As ``look_at`` raises.
    """
    if len(errands) < 2:
        return
    cards, processes = gpus(errands[0].run.loaded.recipe.model.device), _Processes()
    free = SimpleQueue[int]()
    for slot in range(jobs):
        free.put(slot)

    def done_by_itself(errand: Errand) -> PlannedRun:
        run = errand.run
        slot = free.get()
        try:
            place = {"CUDA_VISIBLE_DEVICES": cards[slot % len(cards)]} if cards else {}
            threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
            tell(f"{run.folder}: {errand.told}; see {run.log}")
            code = _run(errand, {**threads, **os.environ, **place}, processes)
            tell(f"{run.folder}: {errand.done if code == 0 else f'ended with exit code {code}'}")
        finally:
            free.put(slot)
        return run

    pool = ThreadPoolExecutor(jobs)
    with StopRequest() as stop:
        try:
            left = {pool.submit(done_by_itself, errand) for errand in errands}
            while left and stop.signal is None:
                done, left = wait(left, timeout=_LOOK_AGAIN, return_when=FIRST_COMPLETED)
                for one in done:
                    look_at(one.result())
        finally:  # no other is begun, and those under way save their step
            processes.stop()
            pool.shutdown(cancel_futures=True)
    if stop.signal is not None:
        raise StoppedError("runs under way were saved", stop.signal)


class _Processes:
    """Processes that are running, until all of them are told to stop: then none is begun any more."""

    def __init__(self) -> None:
        self._lock, self._stopped = Lock(), False
        self._running = set[subprocess.Popen[bytes]]()

    def run(self, arguments: Sequence[str], log: IO[bytes], environment: dict[str, str]) -> int:
        """The exit code of a process; that of a stopped one where none is begun any more."""
        with self._lock:
            if self._stopped:
                return -SIGTERM
            process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment)
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def stop(self) -> None:
        """Tell all of them to save their step and to end."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def _run(errand: Errand, environment: dict[str, str], processes: _Processes) -> int:
    """The exit code of the commands of an errand: 0, or that of the first that failed."""
    log = errand.run.log
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        for command in errand.commands():
            code = processes.run([sys.executable, "-m", "malora_cli", *command[1:]], file, environment)
            if code != 0:
                return code
    return 0
