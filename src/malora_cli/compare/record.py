"""A comparison as it is kept: what was planned before the first run, and what came of it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from malora_cli.compare.outcome import Evaluated, Outcome, check_same_rows
from malora_cli.compare.plan import Plan
from malora_cli.compare.sentences import notes, sentences
from malora_cli.errors import RunError
from malora_cli.results import RunRecord, utc_now
from malora_cli.results.comparison import Comparison, Effect, Endpoint, Failure, MethodResult, MethodRun, Trial, Tuned
from malora_cli.results.predictions import cluster_of, read_predictions
from malora_cli.results.verdicts import RunRows, SeveralRuns, TaskRows, decided, delta_m, effect, mean_ranks


def recorded(
    name: str,
    plan: Plan,
    first: Plan,
    tuned: Mapping[str, Tuned],
    trials: Sequence[Trial],
    outcome: Outcome,
    tried: Sequence[RunRecord] = (),
) -> Comparison:
    """What came of a comparison.

    Args:
        name: Of the comparison.
        plan: What was asked for.
        first: The plan that it began with.
        tuned: The learning rate of every method.
        trials: How these were found.
        outcome: The reported runs.
        tried: The runs of these trials, as far as they are there.

    Raises:
        RunError: No run was evaluated, or the runs were not on the same rows.
    """
    evaluated = [it for it in outcome.evaluated if it.task is None]
    if not evaluated:
        raise RunError("no run came to its end", where=name, fix="See what was said of each above.")
    check_same_rows([*(it.record for it in outcome.evaluated), *tried])
    _check_same_tasks(evaluated)
    by_method = {method: {it.seed: it for it in evaluated if it.method == method} for method in plan.methods}
    rows = {(it.method, it.seed): rows_of(it.file, plan.endpoint) for it in evaluated}
    results = [
        _method(method, tuned[method], found, plan, rows, added=method not in first.methods)
        for method, found in by_method.items()
        if found
    ]
    singles = _singles(outcome.evaluated)
    methods = [_beside_single_tasks(it, rows, singles, plan) for it in _compared(results, plan, rows)]
    example = evaluated[0]
    comparison = Comparison(
        name=name,
        created=utc_now(),
        plan_sha256=first.sha256,
        endpoint=plan.endpoint,
        margin=plan.margin,
        baseline=plan.baseline,
        seeds=plan.seeds,
        tuning_seed=plan.tuning_seed if trials else None,
        steps=example.record.manifest.steps,
        rows={task: found.rows for task, found in example.result.tasks.items()},
        domains={task: found.domain for task, found in example.result.tasks.items()},
        methods=methods,
        alone={task: SeveralRuns([*runs.values()], "loss").values[:, 0].tolist() for task, runs in singles.items()},
        trials=list(trials),
        failures=outcome.failures,
        sentences=[],
    )
    told = comparison.model_copy(update={"notes": notes(comparison, plan.later(first))})
    return told.model_copy(update={"sentences": sentences(told)})


def rows_of(file: Path, endpoint: Endpoint) -> RunRows:
    """The rows of an evaluation of a run, by task; rows of one prompt are one cluster.

    Raises:
        RunError: They are damaged, or have no losses where these are compared.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read_predictions(file):
        found.setdefault(row["task"], []).append(row)
    try:
        return {task: _task_rows(rows, endpoint) for task, rows in found.items()}
    except KeyError as error:
        raise RunError(
            f"rows of this evaluation have no {error}",
            where=str(file),
            fix="Evaluate again, or compare scores: --endpoint score.",
        ) from error


def _task_rows(rows: Sequence[Mapping[str, Any]], endpoint: Endpoint) -> TaskRows:
    losses = endpoint == "loss" or all("adapter_nats" in row for row in rows)
    return TaskRows(
        nats=array("d", (row["adapter_nats"] if losses else 0.0 for row in rows)).tolist(),
        tokens=[row["tokens"] if losses else 1 for row in rows],
        scores=array("d", (row["adapter_score"] for row in rows)).tolist(),
        clusters=[cluster_of(row) for row in rows],
    )


def _method(
    method: str,
    tuned: Tuned,
    found: Mapping[int, Evaluated],
    plan: Plan,
    rows: Mapping[tuple[str, int], RunRows],
    *,
    added: bool,
) -> MethodResult:
    runs = SeveralRuns([rows[method, seed] for seed in found], plan.endpoint)
    value, interval = runs.level()
    middle, half = runs.interquartile()
    return MethodResult(
        method=method,
        parameters=next(iter(found.values())).record.manifest.trainable_parameters,
        tuned=tuned,
        runs=[_run(it) for it in found.values()],
        value=value,
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        interquartile=middle,
        interquartile_half=half,
        added=added,
    )


def _run(it: Evaluated) -> MethodRun:
    tasks = it.result.tasks
    return MethodRun(
        seed=it.seed,
        run=it.record.name,
        losses={name: task.model.loss for name, task in tasks.items() if task.model.loss is not None},
        scores={name: task.model.score for name, task in tasks.items()},
        seconds_per_step=it.record.metrics.pace(),
        train_seconds=it.record.manifest.train_seconds,
        peak_bytes=it.record.manifest.peak_bytes,
    )


def _compared(
    results: Sequence[MethodResult], plan: Plan, rows: Mapping[tuple[str, int], RunRows]
) -> list[MethodResult]:
    """The methods with their effects, Holm over methods for the endpoint and over methods x tasks below it."""
    seeds = {it.method: [run.seed for run in it.runs] for it in results}
    whole = [method for method in seeds if len(seeds[method]) == len(plan.seeds)]  # others are shown, not ranked
    others = [method for method in whole if method != plan.baseline] if plan.baseline in whole else []
    effects, of_tasks = dict[str, Effect](), dict[tuple[str, str], Effect]()
    for method in others:
        one, other = (
            SeveralRuns([rows[name, seed] for seed in plan.seeds], plan.endpoint) for name in (method, plan.baseline)
        )
        family = len(others) * len(one.measured)
        of_tasks |= {(method, task): effect(one, other, task, family=family) for task in one.measured}
        effects[method] = effect(one, other, family=len(others))
    told = _decided(effects, plan)
    tasks = _decided(of_tasks, plan)
    ranks = _ranks(plan, rows, whole)
    best_first = sorted(results, key=lambda it: (it.value or 0.0) * (1 if plan.endpoint == "loss" else -1))
    return [
        it.model_copy(
            update={
                "effect": told.get(it.method),
                "tasks": {task: found for (method, task), found in tasks.items() if method == it.method},
                "rank": ranks.get(it.method),
            }
        )
        for it in best_first
    ]


def _decided(effects: Mapping[Any, Effect], plan: Plan) -> dict[Any, Effect]:
    return dict(zip(effects, decided(list(effects.values()), plan.endpoint, plan.margin), strict=True))


def _singles(evaluated: Iterable[Evaluated]) -> dict[str, dict[int, RunRows]]:
    """Of every task the rows of the runs on it alone, by seed."""
    found: dict[str, dict[int, RunRows]] = {}
    for it in evaluated:
        if it.task is not None:
            found.setdefault(it.task, {})[it.seed] = rows_of(it.file, "loss")
    return found


def _beside_single_tasks(
    it: MethodResult,
    rows: Mapping[tuple[str, int], RunRows],
    singles: Mapping[str, Mapping[int, RunRows]],
    plan: Plan,
) -> MethodResult:
    """A method with what each task gained or lost by being trained with the others, Holm over its tasks."""
    effects, losses = dict[str, Effect](), list[tuple[float, float]]()
    for task, alone in singles.items():
        seeds = [run.seed for run in it.runs if run.seed in alone]
        if len(seeds) < len(plan.seeds):
            continue
        together = SeveralRuns([{task: rows[it.method, seed][task]} for seed in seeds], "loss")
        single = SeveralRuns([alone[seed] for seed in seeds], "loss")
        effects[task] = effect(together, single, family=len(singles))
        losses.append((float(together.values.mean()), float(single.values.mean())))
    told = dict(zip(effects, decided(list(effects.values()), "loss", plan.margin), strict=True))
    known = bool(singles) and len(losses) == len(singles)
    return it.model_copy(update={"alone": told, "delta_m": delta_m(losses) if known else None})


def _ranks(plan: Plan, rows: Mapping[tuple[str, int], RunRows], methods: Sequence[str]) -> dict[str, float]:
    if len(methods) < 2:
        return {}
    values = [
        SeveralRuns([rows[method, seed] for seed in plan.seeds], plan.endpoint).values.ravel() for method in methods
    ]
    ranks = mean_ranks(np.asarray(values), higher_is_better=plan.endpoint == "score")
    return dict(zip(methods, ranks, strict=True))


def _check_same_tasks(evaluated: Iterable[Evaluated]) -> None:
    """Make sure that all runs on the mixture were evaluated on the same tasks.

    Raises:
        RunError: One was not.
    """
    first, *others = evaluated
    for it in others:
        if first.result.tasks.keys() != it.result.tasks.keys():
            raise RunError(f"its tasks are not those of {first.record.path}", where=str(it.record.path))


def failures_of(method: str, seeds: Sequence[int], why: str) -> list[Failure]:
    """Every run of a method that could not be tuned."""
    return [Failure(method=method, seed=seed, run="", why=why) for seed in seeds]
