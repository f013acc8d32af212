"""The learning rate of every method, by validation loss: as many trials for each, with a seed that is not reported.

A rate is a nuisance parameter: methods that look different at one rate are within noise of each other once each has its
own (Learning Rate Matters, arXiv 2602.04998), and a best at the edge of a grid was not found (Deep Learning Tuning
Playbook). There is no halving: methods that start slowly would lose by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, sqrt

from malora_cli.results.comparison import Trial, Tuned

#: Of a method's own learning rate.
FACTORS = (1 / sqrt(10), 1.0, sqrt(10), 10.0)
#: How often grids are extended before the best rate is called not bracketed.
EXTENSIONS = 3
#: Tries methods at learning rates, one trial each.
Attempt = Callable[[Sequence[tuple[str, float]]], Sequence[Trial]]
#: Digits of a rate, which stands in the name of its run.
_DIGITS = 3


def grid_around(rate: float) -> list[float]:
    """The four rates that are tried first."""
    return [rounded(rate * factor) for factor in FACTORS]


def rounded(rate: float) -> float:
    """A rate as it stands in the name of its run."""
    return float(f"{rate:.{_DIGITS}g}")


def tune(grids: Mapping[str, Sequence[float]], attempt: Attempt) -> dict[str, Tuned]:
    """Try every method at every rate of its grid, and beyond where its best lies at an edge.

    Where the grid of one method goes further, every other method gets one more rate as well, next to its best: none is
    tuned with fewer trials than another. A method of which a trial failed without diverging is tried no further, since
    nothing is known of that rate.

    Args:
        grids: The rates that every method begins with, as many for each.
        attempt: Tries methods at rates, as many as are known at a time.

    Returns:
        The best rate of every method. Of equal losses the lower rate is taken.
    """
    wanted = [(method, rate) for method, grid in grids.items() for rate in sorted(grid)]
    losses: dict[str, dict[float, float]] = {method: {} for method in grids}
    failed = set[str]()
    for extension in range(EXTENSIONS + 1):
        for (method, rate), trial in zip(wanted, attempt(wanted), strict=True):
            losses[method][rate] = _loss(trial)
            if trial.loss is None and not trial.diverged:
                failed.add(method)
        going = {method: found for method, found in losses.items() if method not in failed}
        if extension == EXTENSIONS or not any(_edge(found) for found in going.values()):
            break
        wanted = [(method, _further(found)) for method, found in going.items()]
    return {method: Tuned(learning_rate=_best(found), bracketed=not _edge(found)) for method, found in losses.items()}


def _loss(trial: Trial) -> float:
    """Its validation loss; that of one that has none is the worst."""
    return inf if trial.loss is None else trial.loss


def _best(losses: Mapping[float, float]) -> float:
    return min(sorted(losses), key=losses.__getitem__)


def _edge(losses: Mapping[float, float]) -> int:
    """-1 where the best is the lowest rate, 1 where it is the highest, 0 inside."""
    rates, best = sorted(losses), _best(losses)
    return -1 if best == rates[0] else int(best == rates[-1])


def _further(losses: Mapping[float, float]) -> float:
    """The next rate beyond the edge where the best lies, or between the best and the better of its neighbours."""
    rates, best = sorted(losses), _best(losses)
    if (edge := _edge(losses)) != 0:
        inner = rates[1] if edge < 0 else rates[-2]
        return _untried(rounded(best * best / inner), losses, 0.5 if edge < 0 else 2.0)
    place = rates.index(best)
    neighbour = min(rates[place - 1], rates[place + 1], key=losses.__getitem__)
    return _untried(rounded(sqrt(best * neighbour)), losses, 1.1)


def _untried(rate: float, losses: Mapping[float, float], factor: float) -> float:
    """A rate that is not in a grid, which may be so narrow that rounding leads back into it."""
    while rate in losses:
        rate = rounded(rate * factor)
    return rate
