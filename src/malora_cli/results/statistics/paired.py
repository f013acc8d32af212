"""Two models on the same rows.

Sources: McNemar (1947) and Agresti and Min (2005) for scores of 0 and 1; Riezler and Maxwell (2005), On Some Pitfalls
in Automatic Evaluation and Significance Testing for MT, for swapping two models' answers; Miller (2024), Adding Error
Bars to Evals, arXiv 2411.00640, for the detectable difference, with the t quantiles of Bloom (1995).
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np
from scipy.stats import t
from statsmodels.stats.contingency_tables import mcnemar

from malora_cli.errors import DataError
from malora_cli.results.statistics import resampling
from malora_cli.results.statistics.arrays import FloatArray
from malora_cli.results.statistics.proportions import (
    detectable_share,
    difference_interval,
    effective_rows,
    few_clusters,
    padded,
    padded_clusters,
)
from malora_cli.results.statistics.records import Interval, Measured, Paired
from malora_cli.results.statistics.resampling import (
    ENOUGH,
    Sample,
    bootstrap_interval,
    cluster_sums,
    student_interval,
)

#: Up to so many differing clusters, all ways of swapping them are tried.
_ENUMERATED = 13
#: Below so many, no way of swapping is rarer than 5%, two-sided.
_FEWEST = 6


def paired(before: Measured, after: Measured) -> Paired:
    """How ``after`` differs from ``before``."""
    pair = pair_of(before, after)
    return Paired(pair.difference, pair.interval, pair.p, *pair.tally, pair.detectable)


@lru_cache(maxsize=64)
def pair_of(before: Measured, after: Measured) -> Pair:
    """The two side by side; kept, since tasks are compared once alone, once in their domain and once in all."""
    return Pair(before, after)


class Pair:
    """Two models' counts side by side, cluster by cluster.

    Which of the two comes first inside is decided by the content, so that exchanging them negates every result to
    the bit.

    Args:
        before: The earlier model's rows.
        after: The later model's; the same rows in the same order.

    Raises:
        DataError: They are not the same rows.
    """

    def __init__(self, before: Measured, after: Measured) -> None:
        if before.counts.shape != after.counts.shape or (before.codes != after.codes).any():
            raise DataError(
                f"{before.rows} rows in {before.cluster_count} clusters cannot be paired with "
                f"{after.rows} rows in {after.cluster_count}",
                fix="Evaluate both models on the same rows.",
            )
        self.before, self.after = before, after
        ways = {
            1: cluster_sums(np.hstack([before.counts, after.counts]), before.codes),
            -1: cluster_sums(np.hstack([after.counts, before.counts]), before.codes),
        }
        self._sign = min(ways, key=lambda sign: ways[sign].tobytes())
        self.sample = Sample(ways[self._sign], self._difference)

    def _difference(self, sums: FloatArray) -> FloatArray:
        first, second = np.split(sums, 2, axis=-1)
        return self.before.value(second) - self.before.value(first)

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after.score - self.before.score

    @property
    def is_binary(self) -> bool:
        """Whether both models' rows are right or wrong."""
        return self.before.is_binary and self.after.is_binary

    @cached_property
    def tally(self) -> tuple[int, int, int]:
        """Rows won, tied and lost by the later model."""
        gaps = self.after.row_scores - self.before.row_scores
        wins, losses = int((gaps > 1e-12).sum()), int((gaps < -1e-12).sum())
        return wins, self.before.rows - wins - losses, losses

    @cached_property
    def _effective(self) -> tuple[float, float]:
        """Rows that differ and rows in all, as numbers of independent rows."""
        wins, _, losses = self.tally
        rows, gaps = self.before.rows, self.after.row_scores - self.before.row_scores
        effective = effective_rows(gaps - gaps.mean(), self.before.codes)
        return (wins + losses) * effective / rows, effective

    @cached_property
    def interval(self) -> Interval | None:
        """The 95% interval of the difference."""
        if len(self.sample) < 2:
            return None
        if self.is_binary:
            few = few_clusters(self.before.rows, len(self.sample))
            discordant, rows = (few * count for count in self._effective)
            return difference_interval(*padded(self.difference, discordant, rows))
        if self._few_clusters and self.before.bounded:
            return difference_interval(*self._padded, len(self.sample) - 1)
        found = student_interval(self.sample) if self._few_clusters else bootstrap_interval(self.sample)
        if found is None:  # every cluster differs by as much
            return Interval(self.difference, self.difference)
        return found if self._sign > 0 else Interval(-found.high, -found.low)

    @property
    def _padded(self) -> tuple[float, float]:
        return padded_clusters(self.difference, self.sample.standard_error, len(self.sample))

    @property
    def _few_clusters(self) -> bool:
        return self.sample.effective < ENOUGH

    @cached_property
    def p(self) -> float:
        """Two-sided, that the two are exchangeable: McNemar's exact test, or swapping answers cluster by cluster."""
        if self.is_binary and len(self.sample) == self.before.rows:
            wins, ties, losses = self.tally
            return min(1.0, float(mcnemar([[ties, wins], [losses, 0]], exact=True).pvalue))
        return share_as_far(self.difference, self.swapped(), exact=self._enumerable)

    @cached_property
    def _gaps(self) -> FloatArray:
        """Counts of the second less those of the first, of the clusters that differ."""
        first, second = np.split(self.sample.sums, 2, axis=1)
        gaps = second - first
        return gaps[(gaps != 0).any(axis=1)]

    @property
    def _enumerable(self) -> bool:
        return len(self._gaps) <= _ENUMERATED

    def swapped(self, stream: int | None = None) -> FloatArray:
        """Differences with the two models exchanged in some of the clusters.

        Args:
            stream: Random numbers of which stream to draw with; None tries all ways where there are few.
        """
        totals, gaps = self.sample.sums.sum(axis=0), self._gaps
        first, second = np.split(totals, 2)
        if stream is None and self._enumerable:
            exchanged = np.arange(2 ** len(gaps))[:, None] >> np.arange(len(gaps)) & 1
            return self._moved(first, second, exchanged @ gaps)
        chance = self.sample.generator(stream or 0)
        moved, near = list[FloatArray](), max(1, resampling.NEAR // max(1, len(gaps)))
        for block in self.sample.blocks(resampling.DRAWS):
            exchanged = chance.integers(2, size=(block, len(gaps)), dtype=np.int8)
            moved += [exchanged[at : at + near].astype(np.float64) @ gaps for at in range(0, block, near)]
        return self._moved(first, second, np.concatenate(moved))

    def _moved(self, first: FloatArray, second: FloatArray, shift: FloatArray) -> FloatArray:
        return self.before.value(second - shift) - self.before.value(first + shift)

    @property
    def detectable(self) -> float | None:
        """Smallest true difference found 80 times in 100 at 5%; None where none could be."""
        clusters = len(self.sample)
        if clusters < _FEWEST:
            return None
        if self.is_binary:
            discordant, rows = self._effective
            return detectable_share(rows, (discordant + 1) / (rows + 2))
        if not self.sample.effective:
            return detectable_share(clusters, 1 / (clusters + 2)) if self.before.bounded else None
        allowed = self._few_clusters and self.before.bounded
        error = self._padded[1] if allowed else self.sample.standard_error
        return float(t.ppf([0.975, 0.8], clusters - 1).sum()) * error


def share_as_far(difference: float, null: FloatArray, *, exact: bool) -> float:
    """The share of differences under the null that are as far from 0; of draws, with the one observed among them."""
    near = abs(difference) - 1e-9 * max(1e-3, abs(difference))
    as_far = int((np.abs(null) >= near).sum())
    return as_far / len(null) if exact else (as_far + 1) / (len(null) + 1)
