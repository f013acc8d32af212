"""What a plan is going to take and how small a difference it can find, as far as earlier runs and comparisons tell.

Nothing is measured here: a step would need the weights, and a spread needs seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malora_cli.compare.plan import Plan, shared_settings
from malora_cli.compare.planner import PlannedRun, Planner
from malora_cli.errors import RunError
from malora_cli.results import RunRecord, checkpoints_in, runs_under
from malora_cli.results.comparison import Comparison
from malora_cli.results.verdicts import foreseen_detectable

#: Settings of ``train`` that decide what a step costs.
_STEP = ("batch_size", "micro_batch_size", "micro_batch_tokens", "max_length", "shard", "gradient_checkpointing")


@dataclass(frozen=True)
class Pace:
    """How fast a finished run was.

    Args:
        seconds: Of a step, median over its log steps.
        run: Name of its folder.
    """

    seconds: float
    run: str


def paces(runs: Mapping[str, PlannedRun], folder: Path) -> dict[str, Pace]:
    """Of every planned run the pace of the newest finished run in a folder whose steps cost the same.

    Args:
        runs: A run of each kind that is wanted, by any name.
        folder: Where runs lie.

    Returns:
        Only those of which there is one.
    """
    wanted = {name: _step_of(run.loaded.recipe.model_dump(mode="json")) for name, run in runs.items()}
    methods = {run.loaded.recipe.method.name for run in runs.values()}
    found = dict[str, Pace]()
    for record in runs_under(folder):
        if found.keys() == wanted.keys():
            break
        with suppress(RunError):  # what is damaged tells nothing
            if record.finished and record.manifest.method in methods and (pace := _pace(record)) is not None:
                step = _step_of(record.recipe)
                found |= {name: pace for name, other in wanted.items() if name not in found and other == step}
    return found


def _pace(record: RunRecord) -> Pace | None:
    seconds = record.metrics.pace()
    return None if seconds is None else Pace(seconds, record.name)


def _step_of(recipe: Mapping[str, Any]) -> list[Any]:
    """What of a resolved recipe decides how long a step takes."""
    sections = [recipe.get(section) for section in ("model", "method", "mix", "remedies")]
    train = recipe.get("train") or {}
    return [*sections, *(train.get(name) for name in _STEP)]


@dataclass(frozen=True)
class Hours:
    """How long the training of the runs that are not finished takes, one after another.

    Args:
        runs: How many these are, as far as they are known.
        seconds: In all; None where it is not known.
        paces: What it was reckoned from, by method.
        unknown: Methods without a run to reckon from.
    """

    runs: int
    seconds: float | None
    paces: dict[str, Pace]
    unknown: list[str]


def hours_of(planner: Planner, plan: Plan, runs: Sequence[PlannedRun]) -> Hours:
    """How long training takes by the pace of earlier runs, evaluations aside.

    A run on one task alone has a share of the rows of a step, and takes that share of its time.

    Args:
        planner: Makes the recipes.
        plan: What is compared.
        runs: All of its runs that are known.
    """
    missing = [run for run in runs if not run.record.finished]
    methods = [method for method in plan.methods if any(run.method == method for run in missing)]
    known = paces({method: planner.run(method, plan.seeds[0]) for method in methods}, planner.folder.parent)
    unknown = [method for method in methods if method not in known]
    train = planner.own.recipe.train
    if unknown or train.steps is None:
        return Hours(len(missing), None, known, unknown)
    seconds = 0.0
    for run in missing:
        share = run.loaded.recipe.train.batch_size / train.batch_size
        seconds += (train.steps - _steps_done(run)) * share * known[run.method].seconds
    return Hours(len(missing), seconds, known, [])


def _steps_done(run: PlannedRun) -> int:
    """The step that a run goes on from."""
    return max((step for step, _ in checkpoints_in(run.record.checkpoints_dir)), default=0)


@dataclass(frozen=True)
class Visible:
    """How small a difference a plan can find.

    Args:
        difference: The smallest that is seen 80 times in 100, in units of the endpoint.
        source: Name of the comparison whose spread it was reckoned from.
    """

    difference: float
    source: str


def visible_difference(planner: Planner, plan: Plan) -> Visible | None:
    """The difference that a plan can find 80 times in 100, by the spread of an earlier comparison of its tasks.

    Returns:
        None with one seed, or where no earlier comparison lies beside this one that had several.
    """
    for folder, comparison in _earlier(planner, plan):
        effects = [it.effect for it in comparison.methods if it.effect is not None]
        if (difference := foreseen_detectable(effects, len(plan.seeds), family=len(plan.methods) - 1)) is not None:
            return Visible(difference, folder.name)
    return None


def _earlier(planner: Planner, plan: Plan) -> Iterator[tuple[Path, Comparison]]:
    """Comparisons of the same tasks, test rows and base model: this one as it was before, then the others by age."""
    wanted = _measured(shared_settings(planner.own.recipe))
    found = list[tuple[Path, Comparison]]()
    for folder in planner.folder.parent.glob("*.compare"):
        with suppress(RunError):  # what is damaged or not finished tells nothing
            before = Plan.load(folder)
            if before.endpoint == plan.endpoint and _measured(before.recipe) == wanted:
                found.append((folder, Comparison.load(folder)))
    yield from sorted(found, key=lambda one: (one[0] == planner.folder, one[1].created), reverse=True)


def _measured(recipe: Mapping[str, Any]) -> list[Any]:
    """What of the settings of a plan decides which rows are measured, and of which model."""
    mix = recipe.get("mix") or {}
    return [recipe.get("model"), mix.get("tasks"), mix.get("seed"), (recipe.get("eval") or {}).get("rows")]


def told_visible(plan: Plan, visible: Visible | None, folder: Path) -> str:
    """How small a difference a plan can find, as a sentence.

    Args:
        plan: What is compared.
        visible: What is known of it.
        folder: Where comparisons lie.
    """
    if len(plan.seeds) < 2:
        return "one seed allows no verdict, whatever the difference"
    if visible is None:
        return f"how small a difference can be seen is not known yet: {folder} has no earlier comparison of these tasks"
    unit, seeds = "nats a token" if plan.endpoint == "loss" else "score", len(plan.seeds)
    told = f"a true difference of {visible.difference:.3f} {unit} or more would be seen 80 times in 100"
    return f"{told} (by the spread in {visible.source}, with {seeds} seeds)"
