"""Learning rates: the best of the grid, grids that go on where the best lies at an edge, as many trials for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import inf, isnan, log10, nan

import pytest

from malora_cli.compare.tuning import EXTENSIONS, grid_around, tune
from malora_cli.results.comparison import Trial, Tuned


def tuned(**losses: Callable[[float], float]) -> tuple[dict[str, Tuned], Counter[str]]:
    """The rates found for methods of these losses, and how many trials each had: inf diverges, NaN fails otherwise."""
    tried = Counter[str]()
    rates = set[tuple[str, float]]()

    def attempt(method: str, rate: float) -> Trial:
        assert (method, rate) not in rates, "tried twice"
        rates.add((method, rate))
        tried[method] += 1
        loss = losses[method](rate)
        told = {"loss": None, "diverged": loss == inf} if loss == inf or isnan(loss) else {"loss": loss}
        return Trial(method=method, learning_rate=rate, run=f"{method}-{rate}", **told)

    grids = {method: grid_around(1e-3) for method in losses}
    return tune(grids, lambda wanted: [attempt(*one) for one in wanted]), tried


def bowl(best: float) -> Callable[[float], float]:
    return lambda rate: abs(log10(rate) - log10(best))


def test_the_grid_spans_two_orders_of_ten_and_is_round() -> None:
    assert grid_around(5e-4) == [0.000158, 0.0005, 0.00158, 0.005]


def test_the_best_inside_the_grid_is_taken() -> None:
    found, tried = tuned(a=bowl(1e-3), b=bowl(3e-3))
    assert found == {"a": Tuned(learning_rate=1e-3, bracketed=True), "b": Tuned(learning_rate=3.16e-3, bracketed=True)}
    assert tried == {"a": 4, "b": 4}


@pytest.mark.parametrize("best", [1e-2, 3e-2, 1e-4, 2e-5])
def test_a_best_at_an_edge_is_found_by_extension(best: float) -> None:
    found, tried = tuned(edge=bowl(best), inside=bowl(1e-3))
    assert found["edge"].bracketed
    assert found["edge"].learning_rate == pytest.approx(best, rel=0.6)
    assert found["inside"] == Tuned(learning_rate=1e-3, bracketed=True)
    assert tried["edge"] == tried["inside"] > 4, "each has as many"


def test_a_best_that_runs_away_is_not_bracketed() -> None:
    found, tried = tuned(away=lambda rate: -rate, inside=bowl(1e-3))
    assert found["away"].bracketed is False
    assert tried == {"away": 4 + EXTENSIONS, "inside": 4 + EXTENSIONS}


def test_a_trial_that_diverged_is_the_worst() -> None:
    found, _ = tuned(a=lambda rate: inf if rate > 2e-3 else bowl(1e-3)(rate))
    assert found["a"] == Tuned(learning_rate=1e-3, bracketed=True)
    found, tried = tuned(none=lambda _: inf)
    assert tried == {"none": 4 + EXTENSIONS}
    assert found["none"].bracketed is False


def test_a_trial_that_failed_otherwise_extends_no_grid() -> None:
    _, tried = tuned(broken=lambda _: nan, inside=bowl(1e-3))
    assert tried == {"broken": 4, "inside": 4}
    _, tried = tuned(broken=lambda rate: nan if rate < 1e-3 else rate, edge=bowl(1e-2))
    assert tried["broken"] == 4 < tried["edge"]


def test_of_equal_losses_the_lower_rate_is_taken() -> None:
    found, _ = tuned(a=lambda rate: 0.5 if 9e-4 < rate < 4e-3 else 1.0)
    assert found["a"].learning_rate == 1e-3


def test_rates_that_rounding_makes_alike_are_not_tried_twice() -> None:
    narrow = {"low": [1e-3, 1.001e-3], "high": [1e-3, 1.001e-3]}
    tried = Counter[tuple[str, float]]()

    def attempt(wanted: Sequence[tuple[str, float]]) -> list[Trial]:
        tried.update(wanted)
        signs = {"low": 1, "high": -1}
        return [Trial(method=m, learning_rate=rate, run=f"{m}-{rate}", loss=signs[m] * rate) for m, rate in wanted]

    tune(narrow, attempt)
    assert set(tried.values()) == {1}
    assert len(tried) == 2 * (2 + EXTENSIONS)
