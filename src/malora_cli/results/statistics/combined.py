"""Weighted means of task scores: domains, and all of them.

Every task's own interval is combined, not its standard error, so that a task whose rows all score 0 widens the mean's
interval as it should (a bootstrap would take it for certain). Sources: Zou and Donner (2008), Construction of
Confidence Limits about Effect Measures (MOVER); Zou, Huang and Zhang (2009), A Note on Confidence Interval Estimation
for a Linear Function of Binomial Proportions.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from scipy.special import ndtri

from malora_cli.results.statistics.paired import pair_of, paired, share_as_far
from malora_cli.results.statistics.records import Interval, Measured, Paired
from malora_cli.results.statistics.single import score_interval


def macro_interval(tasks: Sequence[Measured], weights: Sequence[float] | None) -> Interval | None:
    """The 95% interval of a weighted mean of scores."""
    return mover([task.score for task in tasks], [score_interval(task) for task in tasks], _weights(tasks, weights))


def paired_macro(befores: Sequence[Measured], afters: Sequence[Measured], weights: Sequence[float] | None) -> Paired:
    """How the weighted mean of scores differs; under the null, answers are exchanged within every task."""
    shares = _weights(befores, weights)
    pairs = [pair_of(before, after) for before, after in zip(befores, afters, strict=True)]
    if len(pairs) == 1:
        return paired(befores[0], afters[0])
    differences = [pair.difference for pair in pairs]
    difference = float(np.dot(shares, differences))
    interval = mover(differences, [pair.interval for pair in pairs], shares)
    null = sum(share * pair.swapped(stream) for stream, (share, pair) in enumerate(zip(shares, pairs, strict=True)))
    p = share_as_far(difference, np.asarray(null), exact=False)
    wins, ties, losses = (sum(counts) for counts in zip(*(pair.tally for pair in pairs), strict=True))
    detectable = None if interval is None else detectable_by(interval)
    return Paired(difference, interval, p, wins, ties, losses, detectable)


def mover(
    estimates: Sequence[float], intervals: Sequence[Interval | None], weights: Sequence[float]
) -> Interval | None:
    """The interval of a weighted sum of independent estimates from their own intervals; None where one has none."""
    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(estimates):
        return None
    parts = list(zip(weights, estimates, known, strict=True))
    middle = sum(weight * estimate for weight, estimate, _ in parts)
    below = sqrt(sum((weight * (estimate - interval.low)) ** 2 for weight, estimate, interval in parts))
    above = sqrt(sum((weight * (interval.high - estimate)) ** 2 for weight, estimate, interval in parts))
    return Interval(middle - below, middle + above)


def detectable_by(interval: Interval) -> float:
    """Miller's formula with the standard error that the width of a 95% interval stands for."""
    reach, power = ndtri([0.975, 0.8])
    return float((interval.high - interval.low) / 2 * (reach + power) / reach)


def _weights(tasks: Sequence[Measured], weights: Sequence[float] | None) -> Sequence[float]:
    if not tasks:
        raise ValueError("a mean of no tasks")
    return [1 / len(tasks)] * len(tasks) if weights is None else weights
