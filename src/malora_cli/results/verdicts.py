"""What the runs of two methods allow to conclude, paired by seed and by row.

Two intervals stand beside each difference. The one over **rows** holds the runs fixed and asks for other test rows
(results/statistics: clustered bootstrap within tasks, combined over tasks by MOVER). The one over **seeds** asks for
new runs: Student's t of the paired differences, one a seed. A verdict takes the wider of the two and the larger of the
two p-values, and one seed allows none: most of what a seed does is which test rows flip (Jordan 2023, arXiv
2304.01910). Equality is two one-sided tests within a margin (Schuirmann 1987). Many effects are corrected by Holm's
method (Dror et al. 2017, arXiv 1709.09500).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import sqrt

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import chi2, nct, rankdata, t, trim_mean

from malora_cli.errors import DataError
from malora_cli.results.comparison import Effect, Endpoint, Verdict
from malora_cli.results.evaluation import ALPHA
from malora_cli.results.statistics import Interval, Measured, Paired, compare, compare_macro, holm, macro, ratio
from malora_cli.results.statistics.arrays import FloatArray
from malora_cli.results.statistics.combined import detectable_by


@dataclass(frozen=True)
class TaskRows:
    """The test rows of one task under one run.

    Args:
        nats: Of the right answer of every row.
        tokens: Of the same.
        scores: What each row's answer is worth.
        clusters: Rows that are no independent evidence share one.
    """

    nats: Sequence[float]
    tokens: Sequence[int]
    scores: Sequence[float]
    clusters: Sequence[str]

    def counts(self, endpoint: Endpoint) -> FloatArray:
        """Counts that add up: the endpoint is the sum of the first over that of the second; shape ``(rows, 2)``."""
        first, second = (self.nats, self.tokens) if endpoint == "loss" else (self.scores, [1.0] * len(self.scores))
        return np.stack([np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)], axis=-1)


#: Every task's rows under one run.
RunRows = Mapping[str, TaskRows]


@dataclass(frozen=True, eq=False)
class SeveralRuns:
    """Runs that differ in their seeds alone.

    Args:
        runs: The rows of each.
        endpoint: What is measured of them.
    """

    runs: Sequence[RunRows]
    endpoint: Endpoint

    @cached_property
    def values(self) -> FloatArray:
        """The endpoint of every run and task, in the order of `measured`; shape ``(runs, tasks)``."""
        sums = [[run[task].counts(self.endpoint).sum(axis=0) for task in self.measured] for run in self.runs]
        return ratio(np.asarray(sums))

    @cached_property
    def measured(self) -> dict[str, Measured]:
        """Of every task by name, its rows with their means over runs; the same objects each time, since pairs are kept.

        Raises:
            DataError: The runs were not measured on the same rows.
        """
        return {task: self._mean([run[task] for run in self.runs]) for task in sorted(self.runs[0])}

    def _mean(self, rows: Sequence[TaskRows]) -> Measured:
        if any(run.tokens != rows[0].tokens or run.clusters != rows[0].clusters for run in rows):
            raise DataError("runs were evaluated on different rows", fix="Evaluate them with the same tasks and limit.")
        counts = np.mean([run.counts(self.endpoint) for run in rows], axis=0)
        return Measured(counts, rows[0].clusters, bounded=self.endpoint == "score")

    def level(self) -> tuple[float, Interval | None]:
        """The mean over tasks and runs, with the wider of its two 95% intervals."""
        by_seed = self.values.mean(axis=1)
        found = [macro(list(self.measured.values())), _over_runs(by_seed)]
        known = [interval for interval in found if interval is not None]
        return float(by_seed.mean()), max(known, key=lambda interval: interval.high - interval.low, default=None)

    def interquartile(self) -> tuple[float, float | None]:
        """The mean of the middle half of the values, one a run and task: single ones that stand out do not move it.

        Returns:
            The mean, and half of its 95% interval over seeds by the jackknife; None of one seed. A bootstrap of so few
            runs, as rliable makes it, covers far less than it says (`benchmarks/verdicts.py middle`).
        """
        runs, whole = len(self.values), _middle(self.values)
        if runs == 1:
            return whole, None
        without = [_middle(np.delete(self.values, run, axis=0)) for run in range(runs)]
        return whole, _reach(runs * whole - (runs - 1) * np.asarray(without))


def _middle(values: FloatArray) -> float:
    return float(trim_mean(values.ravel(), 0.25))


def effect(method: SeveralRuns, baseline: SeveralRuns, task: str | None = None, *, family: int = 1) -> Effect:
    """How a method differs from the baseline, before any verdict.

    Args:
        method: Its runs, one for each seed that both have.
        baseline: Those of the baseline, in the same order of seeds.
        task: On which task; None is the mean over all.
        family: How many effects it will be `decided` with.

    Raises:
        DataError: The two were not measured on the same rows.
    """
    tasks = list(method.measured)
    gaps = method.values - baseline.values
    by_seed = gaps.mean(axis=1) if task is None else gaps[:, tasks.index(task)]
    wanted = tasks if task is None else [task]
    befores, afters = ([runs.measured[name] for name in wanted] for runs in (baseline, method))
    paired = compare_macro(befores, afters) if task is None else compare(befores[0], afters[0])
    seeds = _over_runs(by_seed)
    return Effect(
        value=float(by_seed.mean()),
        by_seed=by_seed.tolist(),
        rows_low=None if paired.interval is None else paired.interval.low,
        rows_high=None if paired.interval is None else paired.interval.high,
        seeds_low=None if seeds is None else seeds.low,
        seeds_high=None if seeds is None else seeds.high,
        p=max(paired.p, _p_of_runs(by_seed)),
        detectable=_detectable(paired, sum(one.cluster_count for one in befores), by_seed, ALPHA / family),
    )


def decided(effects: Sequence[Effect], endpoint: Endpoint, margin: float) -> list[Effect]:
    """The same effects with their verdicts, corrected by Holm over all of them.

    Args:
        effects: One family: every method's endpoint, or every method's every task.
        endpoint: What they are of.
        margin: Differences within it count as none; 0 never finds two methods equal.
    """
    corrected = holm([found.p for found in effects])
    told = []
    for found, p in zip(effects, corrected, strict=True):
        whole = found.model_copy(update={"p_holm": p, "p_equal": p_of_equality(found, margin)})
        told.append(whole.model_copy(update={"verdict": _verdict(whole, endpoint)}))
    return told


def p_of_equality(found: Effect, margin: float) -> float | None:
    """The p-value of two one-sided tests that a difference lies within a margin, by seeds and by rows, the larger.

    Returns:
        None for one seed, or without a margin or an interval.
    """
    if margin <= 0 or len(found.by_seed) < 2 or found.rows_low is None or found.rows_high is None:
        return None
    error = _error(np.asarray(found.by_seed))
    rows = (found.rows_high - found.rows_low) / 2 / float(ndtri(0.975))
    distance = margin - abs(found.value)
    by_seeds = float(t.sf(distance / error, len(found.by_seed) - 1)) if error else float(distance <= 0)
    by_rows = float(ndtr(-distance / rows)) if rows else float(distance <= 0)
    return max(by_seeds, by_rows)


def _detectable(paired: Paired, clusters: int, by_seed: FloatArray, level: float) -> float | None:
    """Smallest true difference that is found 80 times in 100 by seeds and by rows; None where none could be.

    Args:
        paired: The difference over rows.
        clusters: Of these, which cannot be exchanged in more than ``2^clusters`` ways.
        by_seed: The difference of each seed.
        level: Of the tests: 5% over the number of effects, for the first that Holm's method finds.
    """
    if not paired.detectable or 2.0 ** (1 - clusters) >= level:  # 0: no row tells of any spread
        return None
    return _larger(paired.detectable * _wider(level), detectable_over_runs(by_seed, level))


def _wider(level: float) -> float:
    """How many times larger a difference must be to be found at a level than at 5%, by the normal distribution."""
    reach, usual, power = ndtri([1 - level / 2, 1 - ALPHA / 2, 0.8])
    return float((reach + power) / (usual + power))


def detectable_over_runs(by_seed: FloatArray, level: float = ALPHA) -> float | None:
    """Smallest true difference that Student's test finds 80 times in 100 with as many seeds; None of one seed.

    The spread of so few runs is mostly found too small; it is divided by its own median, so that it is as often too
    large. Source: the noncentral t distribution, as in statsmodels' `TTestPower`.
    """
    seeds = len(by_seed)
    if seeds < 2:
        return None
    typical = sqrt(float(chi2.ppf(0.5, seeds - 1)) / (seeds - 1))
    return noncentrality(seeds, level) * _error(by_seed) / typical


def foreseen_detectable(effects: Sequence[Effect], seeds: int, *, family: int = 1) -> float | None:
    """Smallest true difference that a comparison yet to come finds 80 times in 100, by the spread in an earlier one.

    The variances over seeds are pooled over its effects, and so are the widths over rows; the larger part counts.

    Args:
        effects: Of the earlier comparison, on the same rows.
        seeds: That are to come.
        family: Effects that are to come, see `decided`.

    Returns:
        None with one seed, or where no effect has several.
    """
    several = [found for found in effects if len(found.by_seed) > 1]
    if seeds < 2 or not several:
        return None
    freedom = [len(found.by_seed) - 1 for found in several]
    variance = np.average([np.var(found.by_seed, ddof=1) for found in several], weights=freedom)
    typical = float(chi2.ppf(0.5, sum(freedom))) / sum(freedom)
    level = ALPHA / family
    over_seeds = noncentrality(seeds, level) * sqrt(float(variance) / typical / seeds)
    ends = [(found.rows_low, found.rows_high) for found in several]
    over_rows = [detectable_by(Interval(low, high)) for low, high in ends if low is not None and high is not None]
    return _larger(over_seeds, float(np.mean(over_rows)) * _wider(level) if over_rows else None)


@lru_cache
def noncentrality(seeds: int, level: float = ALPHA) -> float:
    """Difference over its true standard error at which the two-sided test at a level has a power of 80%."""
    edge = float(t.ppf(1 - level / 2, seeds - 1))
    return float(brentq(lambda shift: nct.sf(edge, seeds - 1, shift) - 0.8, 0.1, 10 * edge))


def mean_ranks(values: FloatArray, *, higher_is_better: bool) -> list[float]:
    """Mean rank of every method over tasks and seeds, 1 is best; methods that tie share a rank.

    Args:
        values: Shape ``(methods, tasks * seeds)``.
        higher_is_better: Whether they are scores, not losses.
    """
    ranks = rankdata(-values if higher_is_better else values, axis=0)
    return [float(rank) for rank in ranks.mean(axis=1)]


def _verdict(found: Effect, endpoint: Endpoint) -> Verdict:
    if len(found.by_seed) < 2 or found.half is None:
        return Verdict.NONE
    if found.p_equal is not None and found.p_equal < ALPHA:
        return Verdict.EQUAL
    if not (found.told_apart and abs(found.value) > found.half):
        return Verdict.OPEN
    return Verdict.BETTER if (found.value > 0) == (endpoint == "score") else Verdict.WORSE


def delta_m(losses: Iterable[tuple[float, float]]) -> float:
    """What tasks gain on average by being trained together, in percent of the loss that each has alone.

    This is Delta_m of Maninis et al. 2019 (arXiv 1904.08918). Of what is better the higher it is, the sign is
    the other one.

    Args:
        losses: Of each task: trained with the others, and alone.
    """
    return 100 * float(np.mean([(alone - together) / alone for together, alone in losses]))


def _over_runs(by_seed: FloatArray) -> Interval | None:
    """Student's 95% interval of a mean over runs; None of one."""
    if len(by_seed) < 2:
        return None
    middle, half = float(np.mean(by_seed)), _reach(by_seed)
    return Interval(middle - half, middle + half)


def _reach(by_seed: FloatArray) -> float:
    """Half of Student's 95% interval of a mean over runs, of which there are two at least."""
    return float(t.ppf(0.975, len(by_seed) - 1)) * _error(by_seed)


def _p_of_runs(by_seed: FloatArray) -> float:
    """Of Student's paired t test; 0 of one run, which leaves the word to its rows."""
    if len(by_seed) < 2:
        return 0.0
    error, middle = _error(by_seed), abs(float(np.mean(by_seed)))
    if not error:
        return float(middle == 0)
    return 2 * float(t.sf(middle / error, len(by_seed) - 1))


def _error(by_seed: FloatArray) -> float:
    """Standard error of the mean over runs."""
    return float(np.std(by_seed, ddof=1)) / sqrt(len(by_seed))


def _larger(*values: float | None) -> float | None:
    known: Iterable[float] = [value for value in values if value is not None]
    return max(known, default=None)
