"""The interval of one score."""

from __future__ import annotations

import numpy as np

from malora_cli.results.statistics.proportions import effective_rows, wilson
from malora_cli.results.statistics.records import Interval, Measured
from malora_cli.results.statistics.resampling import Sample, bootstrap_interval


def score_interval(measured: Measured) -> Interval | None:
    """The 95% interval of a score, None where there are not two clusters."""
    if measured.cluster_count < 2:
        return None
    if measured.is_binary:
        return _binary(measured)
    sample = Sample.of(measured)
    if np.ptp(sample.without_each) > 1e-12 * max(1.0, abs(sample.estimate)):
        return bootstrap_interval(sample)
    return unvaried(sample, measured.bounds)


def _binary(measured: Measured) -> Interval:
    share = measured.score
    return wilson(share, effective_rows(measured.row_scores - share, measured.codes))


def unvaried(sample: Sample, bounds: tuple[float, float] | None) -> Interval | None:
    """The interval where all clusters score the same, so that a bootstrap would have no width.

    Other clusters may exist without one of them having been drawn. Wilson's limit of 0 in so many bounds their
    share, and they may score anything. For scores of 0 and 1 this is Wilson's interval.
    """
    if bounds is None:
        return None
    unseen, estimate = wilson(0.0, len(sample)).high, sample.estimate
    return Interval(estimate - unseen * (estimate - bounds[0]), estimate + unseen * (bounds[1] - estimate))
