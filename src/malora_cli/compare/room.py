"""What the runs of a comparison take on the disk, reckoned before the first begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.filesize import decimal

from malora_cli.compare.planner import PlannedRun
from malora_cli.errors import RunError
from malora_cli.results import free_bytes

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
    """What some runs are going to take beyond what they have written.

    Args:
        runs: The runs.
        parameters: That each method trains.
    """
    return sum(_missing(run, parameters) for run in runs if not run.record.finished)


def _missing(run: PlannedRun, parameters: Mapping[str, int]) -> int:
    there = sum(file.stat().st_size for file in run.folder.rglob("*.safetensors"))
    return max(0, bytes_of(run, parameters[run.method]) - there)


def check_room(runs: Sequence[PlannedRun], parameters: Mapping[str, int]) -> None:
    """Make sure that the disk has room for what is missing of some runs.

    Args:
        runs: The runs.
        parameters: That each method trains.

    Raises:
        RunError: It has not.
    """
    needed = bytes_missing(runs, parameters)
    if needed and (free := free_bytes(place := runs[0].folder.parent)) < needed:
        raise RunError(
            f"the runs take about {decimal(needed)} with their checkpoints, and {decimal(free)} are free",
            where=str(place),
            fix="Free some space, name another disk by output.folder=FOLDER, or keep fewer: train.keep_checkpoints=1.",
        )
