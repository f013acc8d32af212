"""Intervals, paired tests, Holm's correction and detectable differences of scores measured row by row.

Formulas and sources: ``docs/metrics.md``. What computes is imported inside the functions: a report that only shows
intervals loads neither numpy nor scipy.
"""

from __future__ import annotations

from collections.abc import Sequence

from malora_cli.results.statistics.records import Interval, Measured, Paired, ratio

__all__ = [
    "Interval",
    "Measured",
    "Paired",
    "compare",
    "compare_macro",
    "holm",
    "interval",
    "macro",
    "ratio",
]


def interval(measured: Measured) -> Interval | None:
    """The 95% interval of a score.

    Scores of 0 and 1: Wilson, with the effective number of rows where clusters have several. Others: BCa bootstrap
    over clusters. The same content gives the same interval, whatever the order of the rows.

    Returns:
        None where there are not two clusters: one says nothing about how others would have gone.
    """
    from malora_cli.results.statistics.single import score_interval

    return score_interval(measured)


def compare(before: Measured, after: Measured) -> Paired:
    """How two sets of answers to the same rows differ: ``after`` minus ``before``.

    Scores of 0 and 1: Agresti-Min interval, and McNemar's exact test where every row is its own cluster. Others: BCa
    bootstrap, and a permutation test that swaps the two models' answers to a cluster.

    Raises:
        DataError: The two were not measured on the same rows.
    """
    from malora_cli.results.statistics.paired import paired

    return paired(before, after)


def macro(tasks: Sequence[Measured], weights: Sequence[float] | None = None) -> Interval | None:
    """The 95% interval of a weighted mean of task scores, by default the plain mean.

    Args:
        tasks: Every task's rows; tasks are independent.
        weights: What each counts, summing to 1. `mean_of_means` has those of a mean over domains.
    """
    from malora_cli.results.statistics.combined import macro_interval

    return macro_interval(tasks, weights)


def compare_macro(
    befores: Sequence[Measured], afters: Sequence[Measured], weights: Sequence[float] | None = None
) -> Paired:
    """How the weighted mean of task scores differs; arguments as in `compare` and `macro`."""
    from malora_cli.results.statistics.combined import paired_macro

    return paired_macro(befores, afters, weights)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of a family of tests, corrected so that 5% bounds the chance of *any* false finding among them."""
    # statsmodels has it, but collects garbage at every call, which takes half a second beside a loaded model.
    corrected, least = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = least
    return corrected
