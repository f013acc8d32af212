"""What a comparison is going to do and to take, and what it can find; nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass

from malora_cli.compare.baselines import Study
from malora_cli.compare.foreseen import Hours, Visible, hours_of, visible_difference
from malora_cli.compare.matching import parameters_of
from malora_cli.compare.plan import Plan
from malora_cli.compare.planner import Planner
from malora_cli.compare.room import bytes_missing
from malora_cli.results import free_bytes


@dataclass(frozen=True)
class DryRun:
    """What is known of a comparison before its first run.

    Args:
        parameters: That each method trains.
        rates: The learning rates that each is tried at first, or the one it has.
        trials: How many of its runs are for the tuning, at first.
        single_task_runs: Runs of the baseline on one task alone.
        hours: How long training takes, of what is not finished.
        visible: How small a difference can be found; None where nothing is known of that.
        bytes_missing: What the runs that are not finished take on the disk, about.
        bytes_free: What is free there.
    """

    parameters: dict[str, int]
    rates: dict[str, list[float]]
    trials: dict[str, int]
    single_task_runs: int
    hours: Hours
    visible: Visible | None
    bytes_missing: int
    bytes_free: int


def dry_run_of(planner: Planner, plan: Plan) -> DryRun:
    """What a comparison is going to do.

    Raises:
        MaloraError: The base model or a method's linears are not there.
    """
    study, parameters = Study(planner, plan), parameters_of(planner, plan.methods)
    runs = study.all_runs()
    return DryRun(
        parameters=parameters,
        rates={method: study.grid(method) for method in plan.methods},
        trials=study.first_trials(),
        single_task_runs=len(study.runs_alone({})),
        hours=hours_of(planner, plan, runs),
        visible=visible_difference(planner, plan),
        bytes_missing=bytes_missing(runs, parameters),
        bytes_free=free_bytes(planner.folder.parent),
    )
