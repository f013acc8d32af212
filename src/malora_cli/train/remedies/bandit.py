"""A bandit that adapts the mixture while training goes on: tasks whose loss is high are drawn more often.

Source: Albalak et al., Efficient Online Data Mixing for Language Model Pre-Training, arXiv 2312.02406: Exp3 (Auer et
al., The nonstochastic multiarmed bandit problem, SIAM J. Comput. 2002) with the loss of a task as its reward, weighted
by importance and averaged over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, sqrt
from typing import Any, ClassVar

from pydantic import Field

from malora_cli.recipe import RemedySettings
from malora_cli.recipe.settings import Count
from malora_cli.train.remedies._base import Remedy, Situation

#: How much of the averaged reward a new one leaves in place.
_SMOOTHING = 0.9


class BanditSettings(RemedySettings):
    """A bandit that adapts how often each task is drawn, the more often the higher its training loss."""

    changes_shares: ClassVar[bool] = True

    every: Count = Field(default=10, description="Steps from one adaptation of the shares to the next")

    def sentence(self) -> str:
        """What it does and its source, as the report says it."""
        return (
            f"A bandit adapts how often each task is drawn every {self.every} steps, the higher its training loss the "
            "more often (Albalak et al., arXiv 2312.02406)."
        )


class Bandit(Remedy[BanditSettings]):
    """Exp3 over tasks; it begins with the shares of the mix, each multiplied alike."""

    Settings = BanditSettings

    def __init__(self, settings: BanditSettings, situation: Situation) -> None:
        super().__init__(settings, situation)
        tasks = len(situation.tasks)
        self.updates = 0
        self.rewards = [0.0] * tasks
        self.shares = [1.0 / tasks] * tasks

    @property
    def losses_every(self) -> int:
        """Steps from one adaptation to the next."""
        return self.settings.every

    @property
    def factors(self) -> list[float]:
        """The bandit's shares; they sum to 1, and none is below the rate of exploration."""
        return self.shares

    def learn_of(self, losses: Sequence[float | None]) -> None:
        """Take in what was trained on since the last time, and set the shares anew."""
        for task, loss in enumerate(losses):
            if loss is not None:
                self.rewards[task] = _SMOOTHING * self.rewards[task] + (1 - _SMOOTHING) * loss / self.shares[task]
        before, self.updates = exploration(len(losses), self.updates), self.updates + 1
        now = exploration(len(losses), self.updates)
        highest = max(self.rewards)
        appeal = [exp(before * (reward - highest)) for reward in self.rewards]
        self.shares = [(1 - len(losses) * now) * value / sum(appeal) + now for value in appeal]

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on."""
        return {"updates": self.updates, "rewards": self.rewards, "shares": self.shares}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.updates, self.rewards, self.shares = state["updates"], state["rewards"], state["shares"]


def exploration(tasks: int, updates: int) -> float:
    """The share that every task has whatever its loss: ``min(1 / K, sqrt(ln K / (K t)))``."""
    return min(1 / tasks, sqrt(log(tasks) / (tasks * updates))) if updates else 1 / tasks


REMEDY = Bandit
