"""Permutations, corpus scores, detectable differences and means of tasks against known answers."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from math import sqrt

import numpy as np
import pytest
from scipy.stats import binom, bootstrap, permutation_test

from malora_cli.results.statistics import Measured, compare, interval, macro
from malora_cli.results.statistics.proportions import detectable_share, effective_rows
from malora_cli.results.statistics.resampling import Sample

CHANCE = np.random.default_rng(1)


def graded(count: int, *, lift: float = 0.0) -> Measured:
    return Measured.of_scores(np.clip(CHANCE.beta(1.0, 1.5, size=count) + lift, 0, 1))


def f1(sums):
    return 2 * sums[..., 0] / np.maximum(2 * sums[..., 0] + sums[..., 1], 1)


def test_few_rows_are_swapped_in_all_ways_as_scipy_does():
    before, after = CHANCE.integers(0, 9, size=(2, 10)) / 8
    peer = permutation_test(
        (after, before), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    assert compare(Measured.of_scores(before), Measured.of_scores(after)).p == pytest.approx(peer.pvalue)


def test_many_rows_are_swapped_at_random_to_nearly_the_same():
    before, after = CHANCE.random((2, 60))
    after = after * 0.9 + 0.1
    peer = permutation_test(
        (after, before), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=20_000
    )
    assert compare(Measured.of_scores(before), Measured.of_scores(after)).p == pytest.approx(peer.pvalue, abs=0.03)


def test_a_corpus_score_is_swapped_by_rows_and_scored_anew():
    before = np.array([[1, 2], [0, 3], [2, 1], [1, 0], [0, 1]])
    after = np.array([[2, 1], [1, 1], [2, 1], [1, 1], [1, 0]])
    paired = compare(Measured(before, value=f1), Measured(after, value=f1))
    ways = []
    for swaps in product([False, True], repeat=5):
        chosen = np.array(swaps)[:, None]
        totals = [np.where(chosen, one, other).sum(axis=0) for one, other in ((before, after), (after, before))]
        ways.append(f1(totals[0]) - f1(totals[1]))
    observed = f1(after.sum(axis=0)) - f1(before.sum(axis=0))
    assert paired.difference == pytest.approx(observed)
    assert paired.p == pytest.approx(np.mean(np.abs(ways) >= abs(observed) - 1e-12))


def test_a_corpus_score_has_the_bca_limits_of_scipy():
    right = CHANCE.integers(0, 4, size=200)
    counts = np.stack([right, CHANCE.integers(0, 4, size=200)], axis=-1)
    found = interval(Measured(counts, value=f1))
    peer = bootstrap(
        tuple(counts.T),
        lambda right, wrong, axis: 2 * right.sum(axis) / (2 * right.sum(axis) + wrong.sum(axis)),
        paired=True,
        method="BCa",
        rng=2,
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=0.08 * (peer.high - peer.low))


def test_a_loss_has_students_interval_where_rows_are_few():
    nats = np.array([10.0, 12.0, 9.0, 14.0])
    counts = np.stack([nats, np.full(4, 5.0)], axis=-1)
    found = interval(Measured(counts, bounded=False))
    half = 3.182446 * np.std(nats / 5, ddof=1) / 2
    assert (found.low, found.high) == pytest.approx((2.25 - half, 2.25 + half), abs=1e-5)
    assert interval(Measured(np.full((4, 2), 5.0), bounded=False)) is None


# ---------------------------------------------------------------- Miller, arXiv 2411.00640


def test_the_standard_error_of_clusters_is_millers():
    scores, clusters = CHANCE.random(60), np.repeat(np.arange(15), 4)
    deviations = scores - scores.mean()
    same = clusters[:, None] == clusters[None, :]
    his = sqrt((np.outer(deviations, deviations) * same).sum()) / 60
    ours = Sample.of(Measured.of_scores(scores, clusters)).standard_error
    assert ours == pytest.approx(his * sqrt(15 / 14))  # he leaves out the correction for few clusters


def test_969_rows_detect_3_points_as_in_his_example():
    """His section on power: the variance of the differences is 1/9, so that 969 questions show 0.03."""
    gaps = CHANCE.normal(size=969)
    gaps = 0.03 + (gaps - gaps.mean()) / gaps.std(ddof=1) / 3
    paired = compare(Measured.of_scores(np.zeros(969)), Measured.of_scores(gaps))
    assert paired.detectable == pytest.approx(0.03, abs=1e-4)


@pytest.mark.parametrize(("rows", "differing"), [(40, 0.1), (300, 0.2), (3000, 0.1)])
def test_the_exact_test_finds_what_is_detectable_80_times_in_100(rows, differing):
    gap = detectable_share(rows, differing)
    apart = max(gap, differing)
    shares = [(apart - gap) / 2, (apart + gap) / 2, 1 - apart]
    lost, won, _ = np.random.default_rng(2).multinomial(rows, shares, size=4000).T
    found = 2 * binom.cdf(np.minimum(lost, won), lost + won, 0.5) < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_of_many_rows_the_exact_power_is_millers():
    assert detectable_share(20_000, 0.1) == pytest.approx(2.8016 * sqrt(0.1 / 20_000), rel=0.02)


def test_equal_rows_of_a_cluster_count_once():
    codes = np.repeat(np.arange(50), 4)
    deviations = np.repeat(CHANCE.permutation([0.5, -0.5] * 25), 4)
    assert effective_rows(deviations, codes) == pytest.approx(50, rel=0.03)
    assert effective_rows(np.zeros(200), codes) == 50
    assert effective_rows(deviations, np.arange(200)) == 200


# ---------------------------------------------------------------- means, imports


def test_the_interval_of_a_mean_of_tasks_is_that_of_drawing_rows_within_each():
    tasks = [graded(150), graded(80, lift=0.2), graded(300)]
    found = macro(tasks)
    peer = bootstrap(
        tuple(task.counts[:, 0] for task in tasks),
        lambda *each, axis: sum(one.mean(axis=axis) for one in each) / 3,
        method="BCa",
        rng=3,
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=0.08 * (peer.high - peer.low))


def test_what_only_shows_intervals_loads_neither_numpy_nor_scipy():
    code = (
        "import sys\nfrom malora_cli.results.statistics import Interval, Paired\n"
        "print(sorted({'numpy', 'scipy', 'statsmodels', 'pandas'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
