"""A bandit that adapts the mixture while training goes on: tasks whose loss is high are drawn more often.

Source: Albalak et al., Efficient Online Data Mixing for Language Model Pre-Training, arXiv 2312.02406: Exp3 (Auer et
al., The nonstochastic multiarmed bandit problem, SIAM J. Comput. 2002) with the loss of a task as its reward, weighted
by importance and averaged over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, sqrt
from typing import Any

#: How much of the averaged reward a new one leaves in place.
_SMOOTHING = 0.9


class Bandit:
    """Exp3 over tasks.

    Args:
        tasks: Number of tasks.
    """

    def __init__(self, tasks: int) -> None:
        self.updates = 0
        self.rewards = [0.0] * tasks
        self.shares = [1.0 / tasks] * tasks

    def update(self, losses: Sequence[float | None]) -> list[float]:
        """Take in what was trained on since the last time.

        Args:
            losses: Loss of each task, nats a token; None where it had no token.

        Returns:
            The share of each task from now on; they sum to 1, and none is below the rate of exploration.
        """
        for task, loss in enumerate(losses):
            if loss is not None:
                self.rewards[task] = _SMOOTHING * self.rewards[task] + (1 - _SMOOTHING) * loss / self.shares[task]
        before, self.updates = exploration(len(losses), self.updates), self.updates + 1
        now = exploration(len(losses), self.updates)
        highest = max(self.rewards)
        appeal = [exp(before * (reward - highest)) for reward in self.rewards]
        self.shares = [(1 - len(losses) * now) * value / sum(appeal) + now for value in appeal]
        return self.shares

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on."""
        return {"updates": self.updates, "rewards": self.rewards, "shares": self.shares}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.updates, self.rewards, self.shares = state["updates"], state["rewards"], state["shares"]


def exploration(tasks: int, updates: int) -> float:
    """The share that every task has whatever its loss: ``min(1 / K, sqrt(ln K / (K t)))``."""
    return min(1 / tasks, sqrt(log(tasks) / (tasks * updates))) if updates else 1 / tasks
