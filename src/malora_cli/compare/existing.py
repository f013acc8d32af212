"""A comparison of runs that exist, whoever trained them: the same record, without a plan and without tuning."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from malora_cli.compare.outcome import Evaluated, Outcome, UnlikeError, check_same_base
from malora_cli.compare.plan import Plan, baseline_of
from malora_cli.compare.record import recorded, rows_of
from malora_cli.compare.table import newest_evaluation
from malora_cli.places import leave_out_places
from malora_cli.recipe.differences import differences
from malora_cli.recipe.problems import show
from malora_cli.results import RunRecord
from malora_cli.results.comparison import Comparison, Endpoint, Tuned


def comparison_of(
    records: Sequence[RunRecord], baseline: str | None = None, endpoint: Endpoint = "loss", margin: float = 0.01
) -> Comparison:
    """What runs allow to conclude of their methods.

    Args:
        records: Finished runs with evaluations.
        baseline: The method that the others are compared with; None is that of the first run.
        endpoint: What decides.
        margin: Differences that count as none.

    Raises:
        UnlikeError: They are not of several methods that differ in nothing else: two of one method and seed, one
            method with two settings or learning rates, other rows, another base, length, weights or remedies.
        RunError: A run is not finished or not evaluated, or its files are damaged.
        RecipeError: The baseline is not among their methods.
    """
    evaluated = [_evaluated(record) for record in records]
    methods = list(dict.fromkeys(it.method for it in evaluated))
    if len(methods) < 2:
        raise UnlikeError(f"all are of method {methods[0]}")
    baseline = baseline_of(methods, baseline)
    _check_alike(evaluated)
    if endpoint == "score":
        _check_means(evaluated)
    plan = Plan(
        recipe={},
        methods=methods,
        settings={},
        seeds=sorted({it.seed for it in evaluated}),
        tuning="none",
        tuning_seed=0,
        baseline=baseline,
        endpoint=endpoint,
        margin=margin,
    )
    rates = {it.method: it.record.recipe["train"]["learning_rate"] for it in evaluated}
    tuned = {method: Tuned(learning_rate=rate, bracketed=None) for method, rate in rates.items()}
    comparison = recorded("runs", plan, plan, tuned, [], Outcome(evaluated))
    light = [record.name for record in records if record.is_light]
    told = [f"Their weights are not here, so they cannot be evaluated again: {', '.join(light)}."] if light else []
    return comparison.model_copy(update={"plan_sha256": None, "notes": [*comparison.notes, *told]})


def _evaluated(record: RunRecord) -> Evaluated:
    result = newest_evaluation(record)
    file = next(file for file, found in record.evaluations_by_file().items() if found == result)
    return Evaluated(record.manifest.method, record.manifest.seeds["train"], record, result, file)


#: Between a score that is written down and the mean of its rows.
_ROUNDING = 1e-6
#: Settings of ``train`` that change what is learned and that methods of a comparison share.
_SHARED = (
    "steps",
    "epochs",
    "stop",
    "batch_size",
    "max_length",
    "schedule",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "init_seed",
    "dropout_seed",
)


def _check_alike(evaluated: Sequence[Evaluated]) -> None:
    """Make sure that runs differ in method, seed and learning rate alone, and those of one method in seeds alone."""
    first, of_method = evaluated[0], dict[str, Evaluated]()
    shared, seen = _shared(first), set[tuple[str, int]]()
    for it in evaluated:
        _check_equal(shared, _shared(it), first, it)
        check_same_base(first.record, it.record)
        one = of_method.setdefault(it.method, it)
        _check_equal(_own(one), _own(it), one, it)
        if (it.method, it.seed) in seen:
            raise UnlikeError(f"another run of {it.method} has seed {it.seed} too", where=str(it.record.path))
        seen.add((it.method, it.seed))


def _check_means(evaluated: Sequence[Evaluated]) -> None:
    """Make sure that scores are means over rows, which verdicts are made of; a run does not say whether they are."""
    for it in evaluated:
        for task, rows in rows_of(it.file, "score").items():
            score = it.result.tasks[task].model.score
            if abs(fmean(rows.scores) - score) > _ROUNDING:
                raise UnlikeError(
                    f"the {it.result.tasks[task].metric} of task '{task}' is of all its answers together, no mean over "
                    "rows",
                    where=str(it.record.path),
                    fix="Compare losses: leave --endpoint out.",
                )


def _check_equal(was: dict[str, Any], now: dict[str, Any], first: Evaluated, it: Evaluated) -> None:
    for name, one, other in differences(was, now):
        raise UnlikeError(
            f"its {name} is not that of {first.record.path} ({show(other)}, not {show(one)})",
            where=str(it.record.path),
        )


def _shared(it: Evaluated) -> dict[str, Any]:
    """What the runs of a comparison have in common."""
    recipe = it.record.recipe
    leave_out_places(recipe)
    return {
        "model": {
            name: value for name, value in recipe["model"].items() if name not in ("device", "trust_remote_code")
        },
        "mix": recipe["mix"],
        "remedies": recipe.get("remedies") or {},
        "train": {name: recipe["train"].get(name) for name in _SHARED} | {"steps": it.record.manifest.steps},
    }


def _own(it: Evaluated) -> dict[str, Any]:
    """What the runs of a method have in common besides."""
    recipe = it.record.recipe
    return {"method": recipe["method"], "train": {"learning_rate": recipe["train"]["learning_rate"]}}
