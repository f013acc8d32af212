"""Scores of 0 and 1: intervals by Wilson and by Agresti and Min, and the power of McNemar's exact test.

Rows of one cluster are worth fewer than as many independent ones. Both formulas then take the effective number of
rows, ``n / d``, with the design effect ``d`` of Rao and Scott (1992), A Simple Method for the Analysis of Clustered
Binary Data, and the correction for few clusters of Korn and Graubard (1998), Confidence Intervals for Proportions
with Small Expected Number of Positive Counts.
"""

from __future__ import annotations

from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import binom, t
from statsmodels.stats.proportion import proportion_confint

from malora_cli.results.statistics.arrays import FloatArray
from malora_cli.results.statistics.records import Interval

_QUANTILE = float(ndtri(0.975))


def effective_rows(deviations: FloatArray, codes: NDArray[np.intp]) -> float:
    """Independent rows that would say as much.

    Args:
        deviations: Every row's deviation from the mean. Where all are 0 nothing is known of the correlation, and a
            cluster counts as one row.
        codes: The cluster of every row, from 0.
    """
    sums = np.bincount(codes, weights=deviations)
    rows, clusters = len(codes), len(sums)
    if clusters == rows:
        return rows
    together = clusters / (clusters - 1) * float(np.square(sums).sum())
    alone = float(np.square(deviations).sum())
    effect = together / alone if alone > 0 else rows / clusters
    return rows / max(1.0, effect)


def few_clusters(rows: int, clusters: int) -> float:
    """What part of the effective rows an interval may take, since few clusters tell little of the correlation."""
    return float(t.ppf(0.975, rows - 1) / t.ppf(0.975, clusters - 1)) ** 2


def rows_of_error(score: float, error: float, clusters: int) -> float:
    """Rows of 0 and 1 that would say as much as clusters whose score has this standard error.

    A score between 0 and 1 varies no more than a row of 0 and 1. What few clusters show of its variance is mixed
    with as many such rows as Wilson's interval adds.
    """
    variance, prior = score * (1 - score), _QUANTILE**2
    if not variance:
        return clusters
    shown = clusters * error**2 / variance
    mixed = max(shown, (clusters * shown + prior) / (clusters + prior))
    return clusters / mixed * (_QUANTILE / float(t.ppf(0.975, clusters - 1))) ** 2


def wilson(share: float, rows: float) -> Interval:
    """Wilson's 95% interval of a proportion."""
    low, high = proportion_confint(share * rows, rows, method="wilson")
    return Interval(min(float(low), share), max(float(high), share))


def padded(difference: float, squares: float, rows: float) -> tuple[float, float]:
    """A mean difference and its standard error once two rows are added, of which each differs half up and half down.

    Of right and wrong rows these are Agresti and Min (2005), Simple Improved Confidence Intervals for Comparing
    Matched Proportions: half a row more in each of the four cells.

    Args:
        difference: Mean over the rows, from -1 to 1.
        squares: Sum of the rows' squared differences.
        rows: Rows, or their effective number.
    """
    middle = difference * rows / (rows + 2)
    return middle, sqrt(squares + 1 - middle**2 * (rows + 2)) / (rows + 2)


def padded_clusters(difference: float, error: float, clusters: int) -> tuple[float, float]:
    """The same of clusters, from their mean difference and its standard error."""
    return padded(difference, clusters * ((clusters - 1) * error**2 + difference**2), clusters)


def difference_interval(middle: float, error: float, degrees: float = inf) -> Interval:
    """The 95% interval of a difference of scores between 0 and 1, by Student's quantile."""
    half = float(t.ppf(0.975, degrees)) * error
    return Interval(max(-1.0, middle - half), min(1.0, middle + half))


def detectable_share(rows: float, differing: float) -> float | None:
    """Smallest true difference that McNemar's exact test finds 80 times in 100 at 5%.

    Args:
        rows: Rows, or their effective number.
        differing: Share of rows on which the two models differ; a bigger difference makes it bigger.

    Returns:
        None below 6 rows, where the test rejects nothing.
    """
    count = int(rows)
    if _power(1.0, count, 1.0) < 0.8:
        return None
    return float(brentq(lambda gap: _power(gap, count, max(gap, differing)) - 0.8, 1e-9, 1.0, xtol=1e-6))


def _power(gap: float, rows: int, differing: float) -> float:
    """Chance that the exact test rejects, over all numbers of differing rows."""
    discordant = np.arange(rows + 1)
    discordant = discordant[binom.pmf(discordant, rows, differing) > 1e-12]
    critical = binom.ppf(0.025, discordant, 0.5)
    critical -= binom.cdf(critical, discordant, 0.5) > 0.025
    winning = (1 + gap / differing) / 2
    found = binom.cdf(critical, discordant, 1 - winning) + binom.cdf(critical, discordant, winning)
    return float((binom.pmf(discordant, rows, differing) * found).sum())
