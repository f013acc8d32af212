"""Who gained and who lost from one evaluation to another, who was better once, and how unevenly tasks learn.

Formulas and sources: ``docs/metrics.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import hypot
from statistics import pstdev

from malora_cli.results.metrics import EvalEvent, TaskLoss


@dataclass(frozen=True)
class Change:
    """A task's validation loss at one evaluation against that at another.

    Args:
        nats: Later minus earlier, nats a token: below zero is a gain.
        error: Standard error of that difference as if the two were independent, where both were measured.
    """

    nats: float
    error: float | None

    @property
    def clear(self) -> bool:
        """Whether the change exceeds its standard error."""
        return self.error is not None and abs(self.nats) > self.error


@dataclass(frozen=True)
class Slip:
    """A task that is worse than it once was: its forgetting, and the step at which it was best."""

    task: str
    change: Change
    best_step: int


def change(before: TaskLoss | None, after: TaskLoss | None) -> Change | None:
    """The difference of two measurements, None where one of them is missing."""
    if before is None or after is None or before.loss is None or after.loss is None:
        return None
    known = before.stderr_nats is not None and after.stderr_nats is not None
    error = hypot(before.stderr_nats or 0.0, after.stderr_nats or 0.0) if known else None
    return Change(after.loss - before.loss, error)


def changes(before: EvalEvent, after: EvalEvent) -> dict[str, Change]:
    """The change of every task that both evaluations measured."""
    found = {name: change(before.tasks.get(name), task) for name, task in after.tasks.items()}
    return {name: value for name, value in found.items() if value is not None}


def measured(evals: Sequence[EvalEvent], task: str) -> list[EvalEvent]:
    """The evaluations that have a loss of the task."""
    return [event for event in evals if task in event.tasks and event.tasks[task].loss is not None]


class Lows:
    """Every task's lowest and newest validation loss, taken in one evaluation at a time.

    Args:
        evals: Evaluations, oldest first.
    """

    def __init__(self, evals: Iterable[EvalEvent] = ()) -> None:
        self.newest: dict[str, TaskLoss] = {}
        #: Step and loss where it was lowest, the earliest of equals.
        self.best: dict[str, tuple[int, TaskLoss]] = {}
        self._waited: dict[str, int] = {}
        # Step at which a task had first gone one evaluation without a new low, then two in a row, and so on.
        self._waits: dict[str, list[int]] = {}
        for event in evals:
            self.take(event)

    def take(self, event: EvalEvent) -> None:
        """Take in the next evaluation."""
        for name, task in event.tasks.items():
            if task.loss is None:
                continue
            self.newest[name] = task
            lowest = self.best[name][1].loss if name in self.best else None
            if lowest is None or task.loss < lowest:
                self.best[name], self._waited[name] = (event.step, task), 0
                continue
            self._waited[name] += 1
            waits = self._waits.setdefault(name, [])
            if self._waited[name] > len(waits):
                waits.append(event.step)

    def stopped_at(self, task: str, patience: int) -> int | None:
        """Step at which a task had first gone so many evaluations in a row without a new low; None where it has not."""
        waits = self._waits.get(task, ())
        return waits[patience - 1] if 0 < patience <= len(waits) else None

    def slips(self) -> list[Slip]:
        """Tasks whose newest loss is above their lowest, the biggest slip first."""
        found = []
        for name, (step, best) in self.best.items():
            since = change(best, self.newest[name])
            if since is not None and since.nats > 0:
                found.append(Slip(name, since, step))
        return sorted(found, key=lambda slip: -slip.change.nats)


def imbalance(first: EvalEvent, now: EvalEvent) -> float | None:
    """Spread of the tasks' relative loss change since the first evaluation; None for fewer than two tasks.

    The standard deviation over tasks of ``L_i(now) / L_i(first)``, dimensionless: 0 where every task has lost the same
    part of its loss. The ratio is the inverse training rate of GradNorm (Chen et al., arXiv 1711.02257).
    """
    ratios = [
        task.loss / before.loss
        for name, task in now.tasks.items()
        if (before := first.tasks.get(name)) is not None and before.loss and task.loss is not None
    ]
    return pstdev(ratios) if len(ratios) > 1 else None


def stopped(evals: Sequence[EvalEvent], patience: int) -> set[str]:
    """Tasks whose validation loss went so many evaluations in a row without a new low; what came after does not count.

    Args:
        evals: Evaluations, oldest first.
        patience: How many.
    """
    lows = Lows(evals)
    return {name for name in lows.newest if lows.stopped_at(name, patience) is not None}
