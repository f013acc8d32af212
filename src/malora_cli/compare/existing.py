"""A comparison of runs that exist, whoever trained them: the same record, without a plan and without tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from malora_cli.compare.outcome import Evaluated, Outcome
from malora_cli.compare.plan import Plan
from malora_cli.compare.record import recorded
from malora_cli.compare.table import newest_evaluation
from malora_cli.errors import RunError
from malora_cli.places import leave_out_places
from malora_cli.results import RunRecord
from malora_cli.results.comparison import Comparison, Tuned


def comparison_of(records: Sequence[RunRecord], margin: float = 0.01) -> Comparison | None:
    """What runs allow to conclude of their methods; the first run's method is what the others are compared with.

    Args:
        records: Finished runs with evaluations.
        margin: Differences that count as none.

    Returns:
        None where they are not of several methods that differ in nothing else: two of one method and seed, one method
        with two settings or learning rates, other rows, another base, another length, weights, remedies or optimiser.

    Raises:
        RunError: A run is not finished or not evaluated, or its files are damaged.
    """
    evaluated = [_evaluated(record) for record in records]
    methods = list(dict.fromkeys(it.method for it in evaluated))
    rates = {(it.method, _train(it.record)["learning_rate"]) for it in evaluated}
    pairs = {(it.method, it.seed) for it in evaluated}
    steps = {it.record.manifest.steps for it in evaluated}
    if not _alike(evaluated):
        return None
    if len(methods) < 2 or len(rates) > len(methods) or len(pairs) < len(evaluated) or len(steps) > 1:
        return None
    plan = Plan(
        recipe={},
        methods=methods,
        settings={},
        seeds=sorted({it.seed for it in evaluated}),
        tuning="none",
        tuning_seed=0,
        baseline=methods[0],
        endpoint="loss",
        margin=margin,
    )
    tuned = {method: Tuned(learning_rate=rate, bracketed=None) for method, rate in rates}
    try:
        comparison = recorded("runs", plan, plan, tuned, [], Outcome(evaluated))
    except RunError:  # of other training rows, or without losses
        return None
    return comparison.model_copy(update={"plan_sha256": None})


def _evaluated(record: RunRecord) -> Evaluated:
    result = newest_evaluation(record)
    file = next(file for file, found in record.evaluations_by_file().items() if found == result)
    return Evaluated(record.manifest.method, record.manifest.seeds["train"], record, result, file)


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


def _alike(evaluated: Sequence[Evaluated]) -> bool:
    """Whether runs differ in method, seed and learning rate alone, and those of one method in their seeds alone."""

    def same(found: list[Any]) -> bool:
        return all(one == found[0] for one in found)

    shared, own = [], dict[str, list[Any]]()
    for it in evaluated:
        recipe, manifest = it.record.recipe, it.record.manifest
        leave_out_places(recipe)
        train = [recipe["train"].get(name) for name in _SHARED]
        model = {name: value for name, value in recipe["model"].items() if name not in ("device", "trust_remote_code")}
        base = (manifest.base_model_sha256, manifest.base_model_commit)
        shared.append([model, recipe["mix"], recipe.get("remedies"), train, base])
        own.setdefault(it.method, []).append(recipe["method"])
    return same(shared) and all(same(settings) for settings in own.values())


def _train(record: RunRecord) -> dict[str, Any]:
    return dict(record.recipe["train"])
