"""What the runs of a comparison take on the disk, reckoned before the first begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from malora_cli.compare.planner import PlannedRun
from malora_cli.errors import RunError
from malora_cli.results import RunRecord, free_bytes

#: Bytes of an adapter's number, and of what a checkpoint keeps of it besides: both moments of AdamW.
_NUMBER, _MOMENTS = 4, 8


def bytes_of(run: PlannedRun, parameters: int) -> int:
    """What the adapter of a run takes with the checkpoints that are kept, when it is finished.

    Args:
        run: The run.
        parameters: That it trains.
    """
    train = run.loaded.recipe.train
    kept = train.keep_checkpoints + train.keep_best
    kept += len(run.loaded.recipe.mix.tasks) if train.keep_best_of_tasks else 0
    if train.steps is not None:
        kept = min(kept, -(-train.steps // train.checkpoint_every))
    return parameters * (_NUMBER + kept * (_NUMBER + _MOMENTS))


def bytes_missing(runs: Sequence[PlannedRun], parameters: Mapping[str, int]) -> int:
    """What those of some runs are going to take that are not finished.

    Args:
        runs: The runs.
        parameters: That each method trains.
    """
    return sum(bytes_of(run, parameters[run.method]) for run in unfinished(runs))


def unfinished(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Those of some runs that are not finished."""
    return [run for run in runs if not RunRecord(run.folder).finished]


def check_room(runs: Sequence[PlannedRun], parameters: Mapping[str, int]) -> None:
    """Make sure that the disk has room for those of some runs that are not finished.

    Args:
        runs: The runs.
        parameters: That each method trains.

    Raises:
        RunError: It has not.
    """
    needed, place = bytes_missing(runs, parameters), runs[0].folder.parent
    if (free := free_bytes(place)) < needed:
        raise RunError(
            f"the runs take about {gib(needed)} with their checkpoints, and {gib(free)} are free",
            where=str(place),
            fix="Free some space, name another disk by output.folder=FOLDER, or keep fewer: train.keep_checkpoints=1.",
        )


def gib(size: int) -> str:
    """Bytes as they are told of disks."""
    return f"{size / 2**30:,.1f} GiB"
