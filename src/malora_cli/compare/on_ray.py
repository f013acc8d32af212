"""Runs of a comparison as tasks of Ray, one a GPU or one for some cores, on this machine or a cluster.

Which machine takes a run, and what becomes of it where that machine is lost, is Ray's business. A run that is begun
again goes on from its checkpoints, so its folder has to lie where all machines see it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from malora_cli.compare.planner import Errand, PlannedRun
from malora_cli.compare.run import evaluate
from malora_cli.errors import MaloraError, RecipeError, RunError, StoppedError
from malora_cli.train.run import train
from malora_cli.train.stopping import StopRequest
from malora_cli.train.view import PlainView

#: How often a run is begun again whose process or machine is lost.
_RETRIES = 3
#: Seconds after which it is looked whether this process was told to stop.
_LOOK_AGAIN = 0.5
#: Variables of this process that those of the runs get as well, by how they begin.
_HANDED_ON = ("HF_", "TRANSFORMERS_", "DATASETS_", "TOKENIZERS_", "TQDM_", "MALORA_")


def on_ray(
    errands: Sequence[Errand], look_at: Callable[[PlannedRun], None], *, cpus: int, tell: Callable[[str], None]
) -> None:
    """Train and evaluate runs, some of which may have begun, as many at a time as the cluster has room for.

    ``RAY_ADDRESS`` names the cluster; without it Ray starts on this machine. Each run writes what it has to say beside
    its folder, into ``NAME.log``.

    Args:
        errands: What is missing of each run.
        look_at: Given each run when its task has ended; what it raises ends the others.
        cpus: Cores that each run takes; where the cluster has GPUs it takes one of these as well.
        tell: Told what happens to each run.

    Raises:
        RecipeError: Ray is not installed.
        RunError: The cluster cannot be reached, or has no room for a single run.
        StoppedError: This process was told to stop, and has told the runs.
        MaloraError: As ``look_at`` raises.
    """
    tell(f"Ray: connecting to {os.environ.get('RAY_ADDRESS', 'this machine')}")
    ray = _begun(cpus)
    try:
        gpus = min(1, int(ray.cluster_resources().get("GPU", 0)))
        # Their own process each, or what one run has loaded stays in the way of the next.
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES, max_calls=1)(_done)
        with StopRequest() as stop:
            left = {task.remote(errand, Path.cwd()): errand.run for errand in errands}
            for run in left.values():
                tell(f"{run.folder}: handed to Ray; see {run.log}")
            try:
                while left and stop.signal is None:
                    done, _ = ray.wait(list(left), timeout=_LOOK_AGAIN)
                    for one in done:
                        run = left.pop(one)
                        tell(f"{run.folder}: {_told(ray, one)}")
                        look_at(run)
            finally:
                for one in left:
                    ray.cancel(one)  # as Ctrl-C: those under way save their step
                if left:
                    ray.wait(list(left), num_returns=len(left))
            if stop.signal is not None:
                raise StoppedError("runs under way were saved", stop.signal)
    finally:
        ray.shutdown()


def _begun(cpus: int) -> ModuleType:
    """Ray, connected, with room for a run."""
    try:
        import ray
    except ImportError:
        raise RecipeError("Ray is not installed", where="--on ray", fix="pip install 'malora[ray]'") from None
    variables = {name: value for name, value in os.environ.items() if name.startswith(_HANDED_ON)}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray's telemetry
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS"),
            log_to_driver=False,
            include_dashboard=False,
            configure_logging=False,
            runtime_env={"env_vars": variables},
        )
    except Exception as error:  # of many kinds
        raise RunError(
            f"Ray cannot be reached: {error}", where="RAY_ADDRESS", fix="Unset it to start Ray on this machine."
        ) from None
    most = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if cpus > most:
        ray.shutdown()
        raise RunError(
            f"no machine of the cluster has {cpus} cores; the largest has {most:.0f}", where="--cpus-per-run"
        )
    return ray


def _done(errand: Errand, workplace: Path) -> str:
    """Do what is missing of a run in a process of Ray's; what became of it."""
    os.chdir(workplace)
    run = errand.run
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with run.log.open("a", encoding="utf-8") as log:
        try:
            record = run.record
            if not record.finished:  # a task that Ray begins again may have been
                train(run.loaded, PlainView(Console(file=log, width=200)), resume=record.exists)
            if errand.evaluate:
                evaluate(run, allow_code=errand.allow_code)
        except MaloraError as error:  # which is looked at when the run's turn comes
            log.write(f"{error.kind}: {error}\n")
            return f"failed: {error}"
    return errand.done


def _told(ray: ModuleType, done: Any) -> str:
    """What became of a run, also where Ray has given it up."""
    try:
        return str(ray.get(done))
    except ray.exceptions.RayError as error:
        return f"given up by Ray: {str(error).splitlines()[0]}"
