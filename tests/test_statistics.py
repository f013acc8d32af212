"""Intervals and paired tests against known answers."""

from __future__ import annotations

from math import comb, sqrt

import numpy as np
import pytest
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from malora_cli.errors import DataError
from malora_cli.results.statistics import Measured, compare, holm, interval
from malora_cli.results.statistics.resampling import Sample, bca

DICE = np.random.default_rng(0)
GRADED = DICE.beta(0.5, 2.0, size=300)


def right(count: int, rows: int) -> Measured:
    return Measured.of_scores([1.0] * count + [0.0] * (rows - count))


def crossed(both: int, lost: int, won: int, neither: int) -> tuple[Measured, Measured]:
    """The two models of a table of paired answers."""
    before = [1.0] * (both + lost) + [0.0] * (won + neither)
    after = [1.0] * both + [0.0] * lost + [1.0] * won + [0.0] * neither
    return Measured.of_scores(before), Measured.of_scores(after)


@pytest.mark.parametrize(("count", "rows"), [(0, 40), (1, 40), (20, 40), (39, 40), (160, 160), (700, 1000)])
def test_right_or_wrong_rows_have_wilsons_interval(count, rows):
    found = interval(right(count, rows))
    assert (found.low, found.high) == pytest.approx(proportion_confint(count, rows, method="wilson"), abs=1e-12)


def test_graded_rows_have_the_bca_limits_of_scipy():
    sample = Sample.of(Measured.of_scores(GRADED))
    low, high = bca(sample, sample.bootstrap(10_000), 1.959964)
    peer = bootstrap((GRADED,), np.mean, n_resamples=10_000, method="BCa", rng=1).confidence_interval
    assert (low, high) == pytest.approx((peer.low, peer.high), abs=0.06 * (high - low))


def test_mcnemar_and_tally():
    result = compare(*crossed(both=30, lost=3, won=12, neither=15))
    assert (result.wins, result.ties, result.losses) == (12, 45, 3)
    assert result.difference == pytest.approx(9 / 60)
    assert result.p == pytest.approx(mcnemar([[30, 3], [12, 15]], exact=True).pvalue)
    assert result.p == pytest.approx(2 * sum(comb(15, k) for k in range(4)) / 2**15)


def test_agresti_min_by_hand():
    """The survey of 1,144 people in Agresti, Categorical Data Analysis, chapter on matched pairs."""
    result = compare(*crossed(both=227, lost=132, won=107, neither=678))
    middle, spread = (107 - 132) / 1146, sqrt(107 + 132 + 1 - (107 - 132) ** 2 / 1146) / 1146
    assert result.interval.low == pytest.approx(middle - 1.959964 * spread, abs=1e-6)
    assert result.interval.high == pytest.approx(middle + 1.959964 * spread, abs=1e-6)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    for count in (1, 2, 9):
        p_values = np.random.default_rng(count).random(count) ** 3
        assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


@pytest.mark.parametrize("scores", [[1.0], [0.5]])
def test_one_row_has_no_interval(scores):
    one = Measured.of_scores(scores)
    assert interval(one) is None
    assert compare(one, one).interval is None
    assert compare(one, one).p == 1.0


def test_what_cannot_be_measured_is_told():
    with pytest.raises(DataError, match="no rows were scored"):
        Measured.of_scores([])
    with pytest.raises(DataError, match="row 2: the score is not a finite number"):
        Measured.of_scores([0.5, float("nan")])
    with pytest.raises(DataError, match="3 rows have 2 clusters"):
        Measured.of_scores([1.0, 0.0, 1.0], ["a", "b"])
    with pytest.raises(DataError, match="cannot be paired"):
        compare(right(1, 2), right(1, 3))
    with pytest.raises(DataError, match="cannot be paired"):
        compare(Measured.of_scores([1.0, 0.0], ["a", "b"]), Measured.of_scores([1.0, 0.0], ["a", "a"]))
