"""What runs allow to conclude: against scipy and statsmodels, and against what was put in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats
from scipy.stats import ttest_rel
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from compared import BASELINE, METHODS, comparison
from malora_cli.compare.sentences import notes, sentences
from malora_cli.errors import DataError
from malora_cli.results.comparison import Effect, Verdict
from malora_cli.results.statistics.arrays import FloatArray
from malora_cli.results.verdicts import (
    SeveralRuns,
    TaskRows,
    decided,
    delta_m,
    detectable_over_runs,
    effect,
    mean_ranks,
    noncentrality,
    p_of_equality,
)

ROWS, TASKS = 60, ("a", "b")


def runs(shifts: Sequence[float], *, endpoint: str = "loss", noise: float = 0.02, seed: int = 1) -> SeveralRuns:
    """One run a shift: every row's loss a token is its own plus the shift and some noise."""
    own, chance = np.random.default_rng(0), np.random.default_rng(seed)
    tokens = {task: own.integers(3, 9, ROWS) for task in TASKS}
    losses = {task: own.gamma(4, 0.25, ROWS) for task in TASKS}
    made = [
        {
            task: TaskRows(
                nats=((losses[task] + shift + chance.normal(0, noise, ROWS)) * tokens[task]).tolist(),
                tokens=tokens[task].tolist(),
                scores=(chance.random(ROWS) < 0.5 + shift).astype(float).tolist(),
                clusters=[str(row) for row in range(ROWS)],
            )
            for task in TASKS
        }
        for shift in shifts
    ]
    return SeveralRuns(made, "loss" if endpoint == "loss" else "score")


def of_seeds(by_seed: Sequence[float], reach: float = 1e-6) -> Effect:
    """An effect whose rows leave no doubt."""
    middle = float(np.mean(by_seed))
    ends = {"rows_low": middle - reach, "rows_high": middle + reach, "seeds_low": None, "seeds_high": None}
    return Effect(value=middle, by_seed=list(by_seed), p=0.0, **ends)


def test_the_interquartile_mean_is_that_of_the_middle_half_of_tasks_and_seeds() -> None:
    several = runs([0.0, 0.1, 5.0, 0.3])
    values = sorted(several.values.ravel())
    assert len(values) == 8
    middle, _ = several.interquartile()
    assert middle == pytest.approx(np.mean(values[2:6]))
    assert middle < several.level()[0] / 2, "one run that stands out does not move it"


def test_its_interval_is_that_of_the_jackknife_over_seeds() -> None:
    several = runs([0.0, 0.1, 0.25])
    middle, half = several.interquartile()
    # By hand: two tasks, so that with two seeds the middle two of four values count, with three the middle four of six.
    values = several.values
    without = [np.mean(np.sort(np.delete(values, seed, axis=0).ravel())[1:3]) for seed in range(3)]
    pseudo = [3 * middle - 2 * float(left) for left in without]
    assert half == pytest.approx(stats.t.ppf(0.975, 2) * np.std(pseudo, ddof=1) / np.sqrt(3))
    assert runs([0.3]).interquartile()[1] is None


def test_a_mean_that_no_seed_is_trimmed_of_has_students_interval() -> None:
    """Of three values a quarter, rounded down, is none: the jackknife of a plain mean is Student's interval."""
    rows = {"task": TaskRows([1.0], [1], [0.0], ["a"])}
    several = SeveralRuns(
        [rows, {"task": TaskRows([1.5], [1], [0.0], ["a"])}, {"task": TaskRows([3.0], [1], [0.0], ["a"])}], "loss"
    )
    middle, half = several.interquartile()
    low, high = stats.t.interval(0.95, 2, loc=np.mean([1, 1.5, 3]), scale=stats.sem([1, 1.5, 3]))
    assert half is not None
    assert (middle, middle - half, middle + half) == pytest.approx((5.5 / 3, low, high))


#: Scores of single tasks under LoRA, in Table 1 of MALoRA's paper (arXiv 2410.22782).
ALONE = (42.5, 34.8, 36.5, 77.4, 62.4, 79.3, 66.4)


@pytest.mark.parametrize(
    ("together", "expected"),
    [
        pytest.param((43.2, 34.8, 34.0, 69.6, 59.1, 76.5, 65.9), -3.55, id="LoRA"),
        pytest.param((42.1, 29.3, 33.1, 78.1, 61.1, 78.1, 65.6), -4.28, id="MoLoRA"),
        pytest.param((42.3, 32.9, 34.1, 79.8, 60.0, 78.5, 66.3), -2.06, id="MALoRA"),
    ],
)
def test_delta_m_of_the_papers_own_table(together: tuple[float, ...], expected: float) -> None:
    gained_as_losses = delta_m(zip(together, ALONE, strict=True))
    assert -gained_as_losses == pytest.approx(expected, abs=0.005), "scores are better the higher they are"


def test_a_difference_is_that_of_means_over_tasks_rows_and_seeds() -> None:
    method, baseline = runs([0.1, 0.12, 0.11]), runs([0, 0.01, -0.01], seed=2)
    found = effect(method, baseline)
    by_hand = [
        np.mean([(np.sum(one[t].nats) - np.sum(other[t].nats)) / np.sum(one[t].tokens) for t in TASKS])
        for one, other in zip(method.runs, baseline.runs, strict=True)
    ]
    assert found.by_seed == pytest.approx(by_hand)
    assert found.value == pytest.approx(np.mean(by_hand))
    assert found.rows_low is not None
    assert found.rows_high is not None
    assert found.rows_low < found.value < found.rows_high
    on_a = effect(method, baseline, "a")
    assert found.value == pytest.approx((on_a.value + effect(method, baseline, "b").value) / 2)
    assert np.mean([method.level()[0] - baseline.level()[0]]) == pytest.approx(found.value)


def test_seeds_are_paired_as_scipy_pairs_them() -> None:
    method, baseline = runs([0.01, 0.2, 0.15]), runs([0, 0.1, 0.1], seed=2)
    found = effect(method, baseline)
    test = ttest_rel(method.values.mean(axis=1), baseline.values.mean(axis=1))
    low, high = test.confidence_interval()
    assert found.seeds_low == pytest.approx(low)
    assert found.seeds_high == pytest.approx(high)
    assert found.p == pytest.approx(test.pvalue), "of rows and seeds the one that says less"


def test_equality_is_two_one_sided_tests_as_statsmodels_has_them() -> None:
    by_seed = [0.001, -0.002, 0.003, 0.0005]
    for margin in (0.002, 0.005, 0.02):
        expected = ttost_paired(np.asarray(by_seed), np.zeros(4), -margin, margin)[0]
        assert p_of_equality(of_seeds(by_seed), margin) == pytest.approx(expected)
    assert p_of_equality(of_seeds(by_seed), 0) is None
    assert p_of_equality(of_seeds([0.001]), 0.01) is None
    wide = of_seeds(by_seed, reach=0.02)
    assert p_of_equality(wide, 0.005) > 0.3, "rows that say nothing leave it open"  # type: ignore[operator]


@pytest.mark.parametrize(
    ("shifts", "margin", "verdict"),
    [
        ([0.2, 0.21, 0.22], 0.01, Verdict.WORSE),
        ([-0.2, -0.21, -0.22], 0.01, Verdict.BETTER),
        ([0.0, 0.0, 0.0], 0.05, Verdict.EQUAL),
        ([0.0, 0.0, 0.0], 0, Verdict.OPEN),
        ([0.4, -0.1, 0.2], 0.01, Verdict.OPEN),
        ([0.5], 0.01, Verdict.NONE),
    ],
)
def test_verdicts(shifts: list[float], margin: float, verdict: Verdict) -> None:
    [found] = decided([effect(runs(shifts), runs([0.0] * len(shifts), seed=2))], "loss", margin)
    assert found.verdict is verdict


def test_a_higher_score_is_better() -> None:
    method, baseline = runs([0.4, 0.4, 0.4], endpoint="score"), runs([0, 0, 0], endpoint="score", seed=2)
    [found] = decided([effect(method, baseline)], "score", 0.01)
    assert found.value > 0
    assert found.verdict is Verdict.BETTER


def test_methods_that_answer_alike_are_equal() -> None:
    alike = runs([0.0, 0.1, 0.2])
    [found] = decided([effect(alike, SeveralRuns(alike.runs, "loss"))], "loss", 0.01)
    assert (found.value, found.rows_low, found.rows_high, found.detectable) == (0.0, 0.0, 0.0, None)
    assert found.verdict is Verdict.EQUAL


def test_tasks_are_paired_by_name_in_whichever_order_they_stand() -> None:
    method, baseline = runs([0.1, 0.12, 0.11]), runs([0, 0.01, -0.01], seed=2)
    turned = SeveralRuns([dict(reversed(run.items())) for run in method.runs], "loss")
    assert list(turned.runs[0]) == ["b", "a"]
    for task in (None, *TASKS):
        assert effect(turned, baseline, task) == effect(method, baseline, task)


def test_the_more_effects_the_larger_a_difference_must_be_to_be_seen() -> None:
    method, baseline = runs([0.1, 0.12, 0.11]), runs([0, 0.01, -0.01], seed=2)
    alone, among = (effect(method, baseline, family=family).detectable for family in (1, 4))
    by_seed = np.asarray(effect(method, baseline).by_seed)
    assert alone == pytest.approx(detectable_over_runs(by_seed))
    assert among == pytest.approx(detectable_over_runs(by_seed, 0.05 / 4))
    assert among > 1.5 * alone  # type: ignore[operator]


@pytest.mark.parametrize(("rows", "family", "none"), [(2, 1, True), (3, 1, False), (3, 4, True), (60, 4, False)])
def test_rows_that_are_too_few_for_any_verdict_see_nothing(rows: int, family: int, none: bool) -> None:
    """Two tasks of so many rows: answers can be exchanged in 2 to the power of all rows ways."""

    def few(several: SeveralRuns) -> SeveralRuns:
        cut = [
            {
                name: TaskRows(*(part[:rows] for part in (it.nats, it.tokens, it.scores, it.clusters)))
                for name, it in run.items()
            }
            for run in several.runs
        ]
        return SeveralRuns(cut, "loss")

    found = effect(few(runs([1.0, 1.01, 1.02])), few(runs([0, 0.01, -0.01], seed=2)), family=family)
    assert (found.detectable is None) is none


def test_many_effects_are_corrected_by_holm() -> None:
    baseline = runs([0, 0.01, 0.02], seed=2)
    effects = [effect(runs([s, s + 0.01, s + 0.02], seed=3), baseline) for s in (0.0, 0.005, 0.01, 0.2)]
    told = decided(effects, "loss", 0)
    assert [found.p_holm for found in told] == pytest.approx(multipletests([e.p for e in effects], method="holm")[1])


def test_other_rows_are_not_compared() -> None:
    other = runs([0.0])
    rows = other.runs[0]["a"]
    changed = TaskRows(rows.nats, [*rows.tokens[:-1], 99], rows.scores, rows.clusters)
    with pytest.raises(DataError, match="different rows"):
        _ = SeveralRuns([other.runs[0], {**other.runs[0], "a": changed}], "loss").measured


def test_ranks_are_shared_by_ties() -> None:
    values: FloatArray = np.array([[0.1, 0.5], [0.2, 0.5], [0.3, 0.1]])
    assert mean_ranks(values, higher_is_better=False) == [1.75, 2.25, 2.0]
    assert mean_ranks(values, higher_is_better=True) == [2.25, 1.75, 2.0]


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_what_a_plan_can_see_is_seen_four_times_in_five(seeds: int) -> None:
    """Where runs alone are uncertain."""
    chance, spread = np.random.default_rng(5), 0.1
    said = np.median([detectable_over_runs(chance.normal(0, spread, seeds)) or 0 for _ in range(4000)])
    drawn = chance.normal(said, spread, (4000, seeds))
    found = np.mean(ttest_rel(drawn, np.zeros_like(drawn), axis=1).pvalue < 0.05)
    assert found == pytest.approx(0.8, abs=0.03)
    error = np.std(drawn[0], ddof=1) / np.sqrt(seeds)
    if seeds > 2:  # of two, statsmodels finds no number
        power = TTestPower().power(effect_size=noncentrality(seeds) / np.sqrt(seeds), nobs=seeds, alpha=0.05)
        assert power == pytest.approx(0.8, abs=0.005)
    assert (detectable_over_runs(drawn[0]) or 0) > noncentrality(seeds) * error


def test_one_seed_counts_no_task_as_better_or_worse() -> None:
    [*_, seesaw] = sentences(comparison(seeds=(1,), methods=METHODS[:2]))
    assert "Delta_m" in seesaw
    assert "of one seed, which allows no verdict; worst" in seesaw
    assert "better on" not in seesaw
    assert "better on" in sentences(comparison(methods=METHODS[:2]))[-1]


def test_a_baseline_that_lacks_a_run_is_what_nothing_is_compared_with() -> None:
    whole = comparison(methods=METHODS[:2])
    methods = [
        it.model_copy(update={"runs": it.runs[:2], "effect": None}) if it.method == BASELINE else it
        for it in whole.methods
    ]
    said = notes(whole.model_copy(update={"methods": methods}), [])
    assert [line for line in said if "missing" in line] == [
        f"Nothing is compared, since runs of the baseline are missing: {BASELINE}."
    ]
