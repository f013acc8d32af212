"""A synthetic comparison for the tests of its page: numbers are made from names, so that each is a different one."""

from __future__ import annotations

from statistics import fmean

from malora_cli.results.comparison import (
    Comparison,
    Effect,
    Endpoint,
    Failure,
    MethodResult,
    MethodRun,
    Trial,
    Tuned,
    Verdict,
)

BASELINE = "plain"
METHODS = (BASELINE, "alpha", "beta", "gamma", "delta", "epsilon", "zeta")
TASKS = {f"task_{letter}": f"domain {index % 3}" for index, letter in enumerate("abcdefgh")}
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3)
SEEDS = (1, 2, 3)
#: By how much each method's loss differs from the baseline's, and what is said of it.
GAPS = {
    "alpha": (-0.05, Verdict.BETTER),
    "beta": (-0.02, Verdict.OPEN),
    "gamma": (0.001, Verdict.EQUAL),
    "delta": (0.01, Verdict.OPEN),
    "epsilon": (0.03, Verdict.OPEN),
    "zeta": (0.2, Verdict.WORSE),
}


def effect(value: float, verdict: Verdict, seeds: tuple[int, ...]) -> Effect:
    several = len(seeds) > 1
    return Effect(
        value=value,
        by_seed=[value + 0.001 * seed for seed in seeds],
        rows_low=value - 0.011,
        rows_high=value + 0.012,
        seeds_low=value - 0.017 if several else None,
        seeds_high=value + 0.017 if several else None,
        p=0.01,
        p_holm=0.0312,
        verdict=verdict if several else Verdict.NONE,
    )


def run(method: str, seed: int, tasks: dict[str, str]) -> MethodRun:
    gap = GAPS.get(method, (0.0,))[0]
    losses = {task: 1.0 + index / 8 + gap + 0.004 * seed for index, task in enumerate(tasks)}
    place = METHODS.index(method) if method in METHODS else 0
    scores = {task: (20 + 5 * index + place + seed) / 100 for index, task in enumerate(tasks)}
    return MethodRun(
        seed=seed,
        run=f"../runs/{method}-{seed}",
        losses=losses,
        scores=scores,
        seconds_per_step=0.5 + place / 7 + seed / 100,
        train_seconds=100.0,
    )


def result(method: str, seeds: tuple[int, ...], tasks: dict[str, str], endpoint: Endpoint = "loss") -> MethodResult:
    runs = [run(method, seed, tasks) for seed in seeds if (method, seed) != ("epsilon", 3)]
    value = fmean(fmean((one.losses if endpoint == "loss" else one.scores).values()) for one in runs)
    gap, verdict = GAPS.get(method, (0.0, None))
    whole = len(runs) == len(seeds)
    place = METHODS.index(method) if method in METHODS else 0
    return MethodResult(
        method=method,
        parameters=1_000_000 * (place + 1) + 234,
        tuned=Tuned(learning_rate=RATES[-1] if method == "beta" else RATES[place % 3 + 1], bracketed=method != "beta"),
        runs=runs,
        value=value,
        low=value - 0.02,
        high=value + 0.021,
        interquartile=value - 0.003,
        interquartile_half=0.017 if len(seeds) > 1 else None,
        effect=None if verdict is None or not whole else effect(gap, verdict, seeds),
        tasks={}
        if verdict is None or not whole
        else {task: effect(gap * (1 + i / 4), _on_task(verdict, i), seeds) for i, task in enumerate(tasks)},
        rank=1.0 + place / 2 if whole else None,
        alone={task: effect(gap + 0.01, _on_task(Verdict.WORSE, i), seeds) for i, task in enumerate(tasks)}
        if whole
        else {},
        delta_m=-100 * gap if whole else None,
        added=method == "delta",
    )


def _on_task(verdict: Verdict, index: int) -> Verdict:
    return Verdict.OPEN if index % 3 == 0 else verdict


def trials(methods: tuple[str, ...]) -> list[Trial]:
    found = []
    for method in methods:
        best = result(method, (1,), TASKS).tuned.learning_rate
        for rate in RATES:
            loss = (
                None
                if (method, rate) == ("zeta", RATES[-1])
                else 1.3 + 0.1 * abs(RATES.index(rate) - RATES.index(best))
            )
            why = None if loss is not None else "the loss was no number at step 12"
            found.append(
                Trial(
                    method=method,
                    learning_rate=rate,
                    run=f"tuning/{method}-{rate}",
                    loss=loss,
                    why=why,
                    diverged=loss is None,
                    seconds=9.0,
                )
            )
    return found


def comparison(
    *,
    seeds: tuple[int, ...] = SEEDS,
    tasks: dict[str, str] = TASKS,
    methods: tuple[str, ...] = METHODS,
    **changes: object,
) -> Comparison:
    """7 methods, 8 tasks and 3 seeds: a best at the edge of the grid, a trial that diverged, a run that failed."""
    endpoint: Endpoint = "score" if changes.get("endpoint") == "score" else "loss"
    found = [result(method, seeds, tasks, endpoint) for method in methods]
    values: dict[str, object] = {
        "name": "seven methods",
        "created": "2026-01-02T03:04:05+00:00",
        "plan_sha256": "0a" * 32,
        "endpoint": endpoint,
        "margin": 0.015,
        "baseline": methods[0],
        "seeds": list(seeds),
        "tuning_seed": 100,
        "steps": 1200,
        "rows": {task: 300 + index for index, task in enumerate(tasks)},
        "domains": tasks,
        "alone": {task: [1.0 + index / 8] * len(seeds) for index, task in enumerate(tasks)},
        "methods": sorted(found, key=lambda it: it.value or 0.0, reverse=endpoint == "score"),
        "trials": trials(methods) if methods == METHODS else [],
        "failures": [Failure(method="epsilon", seed=3, run="../runs/epsilon-3", why="out of memory at step 7")]
        if "epsilon" in methods
        else [],
        "notes": ["beta has its best learning rate at the edge of the grid."],
        "sentences": ["alpha is better than plain by 0.0500 nats a token.", "gamma equals plain within the margin."],
        **changes,
    }
    return Comparison.model_validate(values)
