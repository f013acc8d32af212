"""What holds of intervals and paired tests whatever the scores, and how often intervals hold the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_cli.results.statistics import Measured, Paired, compare, compare_macro, interval, macro
from malora_cli.results.statistics.paired import Pair

few_examples = settings(max_examples=15, deadline=None)
graded = st.integers(0, 8).map(lambda eighths: eighths / 8)
rows = st.lists(st.tuples(graded, graded, st.integers(0, 6)), min_size=1, max_size=24)
right_or_wrong = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 6)), min_size=1, max_size=24)
either = st.one_of(rows, right_or_wrong)


def two(listed: list[tuple[float, float, int]]) -> tuple[Measured, Measured]:
    before, after, clusters = zip(*listed, strict=True)
    return Measured.of_scores(before, clusters), Measured.of_scores(after, clusters)


def mirrored(paired: Paired) -> tuple[object, ...]:
    ends = (-paired.interval.high, -paired.interval.low) if paired.interval else (None, None)
    return -paired.difference, *ends, paired.p, paired.losses, paired.ties, paired.wins, paired.detectable


def told(paired: Paired) -> tuple[object, ...]:
    ends = astuple(paired.interval) if paired.interval else (None, None)
    return paired.difference, *ends, paired.p, paired.wins, paired.ties, paired.losses, paired.detectable


@few_examples
@given(either)
def test_an_interval_holds_its_score_and_stays_between_0_and_1(listed):
    for measured in two(listed):
        found = interval(measured)
        if measured.cluster_count < 2:
            assert found is None
            continue
        assert -1e-12 <= found.low <= measured.score + 1e-12
        assert measured.score - 1e-12 <= found.high <= 1 + 1e-12
        assert found.high - found.low > 0.01  # two dozen rows are never certain


@few_examples
@given(either)
def test_a_difference_lies_in_its_interval(listed):
    paired = compare(*two(listed))
    assert 0 < paired.p <= 1
    assert paired.wins + paired.ties + paired.losses == len(listed)
    if paired.interval is not None:
        assert -1 <= paired.interval.low <= paired.difference + 1e-12
        assert paired.difference - 1e-12 <= paired.interval.high <= 1


@few_examples
@given(either)
def test_exchanging_the_models_negates_the_difference(listed):
    before, after = two(listed)
    assert told(compare(before, after)) == pytest.approx(mirrored(compare(after, before)), abs=1e-12)


@few_examples
@given(either, st.randoms(use_true_random=False))
def test_the_order_and_the_names_of_clusters_change_nothing(listed, chance):
    moved = chance.sample(listed, len(listed))
    names = chance.sample(["z", "b", "q", "a", "x", "m", "c"], 7)
    renamed = [(before, after, names[cluster]) for before, after, cluster in moved]
    assert told(compare(*two(listed))) == pytest.approx(told(compare(*two(renamed))), abs=1e-12)
    assert interval(two(listed)[0]) == interval(two(renamed)[0])


def test_the_same_content_gives_the_same_numbers_to_the_bit():
    scores = np.random.default_rng(3).random((2, 200))
    first, second = (compare(*(Measured.of_scores(one) for one in scores)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("scores", [[0.0] * 40, [1.0] * 40, [0.25] * 40])
def test_rows_that_all_score_the_same_are_not_certain(scores):
    measured = Measured.of_scores(scores)
    found = interval(measured)
    assert 0.05 < found.high - found.low < 0.15
    paired = compare(measured, measured)
    assert paired.interval.low == -paired.interval.high < -0.03
    assert paired.p == 1.0
    assert 0.15 < paired.detectable < 0.2  # six of 40 rows must differ, one way, for p < 0.05


def test_correlated_rows_widen_the_interval():
    scores = np.repeat(np.random.default_rng(4).random(40) < 0.5, 4)
    alone, together = Measured.of_scores(scores), Measured.of_scores(scores, np.repeat(np.arange(40), 4))
    widths = [found.high - found.low for found in (interval(alone), interval(together))]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.1)  # 40 rows, not 160


def test_six_clusters_are_the_fewest_that_can_differ():
    for clusters, lowest in ((5, 2 / 2**5), (6, 2 / 2**6)):
        before, after = (Measured.of_scores([s] * 8 * clusters, np.arange(8 * clusters) // 8) for s in (0.0, 1.0))
        paired = compare(before, after)
        assert paired.p == lowest
        assert (paired.detectable is None) == (clusters < 6)


# ---------------------------------------------------------------- means of tasks


def tasks(*means: float, count: int = 120, seed: int = 5) -> list[Measured]:
    chance = np.random.default_rng(seed)
    return [Measured.of_scores((chance.random(count) < mean).astype(float)) for mean in means]


def test_the_interval_of_a_mean_of_tasks_is_narrower_than_each():
    found = tasks(0.4, 0.5, 0.6)
    widths = [one.high - one.low for one in map(interval, found)]
    whole = macro(found)
    assert whole.high - whole.low == pytest.approx(np.sqrt(np.square(widths).sum()) / 3, rel=0.02)


def test_weights_make_the_mean_of_domains():
    found, weights = tasks(0.2, 0.4, 0.9), [0.25, 0.25, 0.5]
    mean = sum(weight * one.score for weight, one in zip(weights, found, strict=True))
    whole = macro(found, weights)
    assert whole.low < mean < whole.high
    alone = macro(found, [0.0, 0.0, 1.0])
    assert (alone.low, alone.high) == pytest.approx((interval(found[2]).low, interval(found[2]).high))


def test_a_task_of_wrong_answers_widens_the_mean():
    whole = macro([*tasks(0.5), Measured.of_scores([0.0] * 30)])
    half = macro([*tasks(0.5), Measured.of_scores([0.0] * 3000)])
    assert whole.high > half.high + 0.005


def test_small_gains_on_many_tasks_add_up():
    befores, afters = tasks(*[0.4] * 8), tasks(*[0.48] * 8, seed=8)
    whole = compare_macro(befores, afters)
    assert whole.p < 0.01
    assert whole.p < min(compare(*pair).p for pair in zip(befores, afters, strict=True))
    assert whole.interval.low > 0
    assert whole.detectable < 0.08
    assert whole.wins + whole.ties + whole.losses == 960


def test_one_task_is_its_own_mean():
    before, after = tasks(0.3, 0.5)
    assert compare_macro([before], [after]) == compare(before, after)
    assert macro([before]).low == pytest.approx(interval(before).low)


def test_equal_tasks_are_exchanged_independently():
    """With one stream of random numbers for both, twice the same task would be as uncertain as one."""
    before, after = tasks(0.4, count=200)[0], tasks(0.47, count=200, seed=8)[0]
    assert compare_macro([before] * 6, [after] * 6).p < compare(before, after).p / 2


# ---------------------------------------------------------------- coverage

Draw = Callable[[np.random.Generator], tuple[Measured, float]]


def right_rows(chance: np.random.Generator) -> tuple[Measured, float]:
    return Measured.of_scores((chance.random(40) < 0.98).astype(float)), 0.98


def clustered_rows(chance: np.random.Generator) -> tuple[Measured, float]:
    shares = np.repeat(chance.beta(0.7, 1.633, size=10), 4)
    return Measured.of_scores((chance.random(40) < shares).astype(float), np.arange(40) // 4), 0.3


def graded_rows(chance: np.random.Generator) -> tuple[Measured, float]:
    return Measured.of_scores(chance.beta(0.04, 1.96, size=40)), 0.02


@pytest.mark.parametrize("draw", [right_rows, clustered_rows, graded_rows])
def test_intervals_hold_the_truth(draw: Draw):
    """Whole simulation: ``benchmarks/intervals.py``. Of 300 intervals, 95% is 285; a chance of 1e-4 is 268."""
    chance, held = np.random.default_rng(6), 0
    for _ in range(300):
        measured, truth = draw(chance)
        found = interval(measured)
        held += found.low <= truth <= found.high
    assert held >= 268


def test_equal_models_are_seldom_told_apart():
    chance, found = np.random.default_rng(7), 0
    for _ in range(200):
        scores = chance.beta(0.5, 1.0, size=(2, 80))
        pair = Pair(*(Measured.of_scores(one, np.arange(80) // 4) for one in scores))
        found += pair.p < 0.05
    assert found <= 22  # 10 expected; a chance of 3e-4
