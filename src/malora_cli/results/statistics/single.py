"""The interval of one score."""

from __future__ import annotations

from functools import lru_cache

from malora_cli.results.statistics.proportions import effective_rows, few_clusters, rows_of_error, wilson
from malora_cli.results.statistics.records import Interval, Measured
from malora_cli.results.statistics.resampling import ENOUGH, Sample, bootstrap_interval, student_interval


@lru_cache(maxsize=64)
def score_interval(measured: Measured) -> Interval | None:
    """The 95% interval of a score, None where there are not two clusters."""
    if measured.cluster_count < 2:
        return None
    if measured.is_binary:
        share = measured.score
        effective = effective_rows(measured.row_scores - share, measured.codes)
        return wilson(share, effective * few_clusters(measured.rows, measured.cluster_count))
    sample = Sample.of(measured)
    if sample.effective >= ENOUGH:
        return bootstrap_interval(sample)
    if not measured.bounded:
        return student_interval(sample)
    score = min(max(sample.estimate, 0.0), 1.0)
    return wilson(score, rows_of_error(score, sample.standard_error, len(sample)))
