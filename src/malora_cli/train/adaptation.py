"""What training changes about itself by how the tasks do: how often each is drawn, and whether it still is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from malora_cli.data.mixture import Mixture
from malora_cli.results import EvalEvent, stopped
from malora_cli.train import processes
from malora_cli.train.bandit import Bandit
from malora_cli.train.task_losses import TaskLosses


class Adaptation:
    """The shares of the tasks from step to step.

    Args:
        mixture: The training rows; its order is what is changed.
        patience: Evaluations without a better held-out loss after which a task is no longer drawn; None draws all.
        evals: Evaluations so far, those of a resumed run.
        device: Where losses are.
    """

    def __init__(
        self, mixture: Mixture, patience: int | None, evals: Sequence[EvalEvent], device: torch.device
    ) -> None:
        self.mixture, self.patience, self.evals = mixture, patience, list(evals)
        names = [task.name for task in mixture.tasks]
        self.bandit = Bandit(len(names)) if mixture.adapt_every is not None else None
        self.losses = TaskLosses(names, device)

    @property
    def stopped(self) -> set[str]:
        """Tasks that are no longer drawn."""
        return stopped(self.evals, self.patience) if self.patience is not None else set()

    @property
    def over(self) -> bool:
        """Whether no task is drawn any more."""
        return len(self.stopped) == len(self.mixture.tasks)

    @property
    def share(self) -> dict[str, float] | None:
        """Each task's share of the rows from here on; None where shares never change."""
        if self.bandit is None and self.patience is None:
            return None
        return {
            task.name: float(share) for task, share in zip(self.mixture.tasks, self.mixture.order.share, strict=True)
        }

    def held_out(self, step: int) -> dict[str, float] | None:
        """The loss of every task after a step; None where it was not evaluated."""
        found = next((event for event in reversed(self.evals) if event.step == step), None)
        if found is None:
            return None
        return {name: task.loss for name, task in found.tasks.items() if task.loss is not None}

    def after_step(self, step: int) -> None:
        """Let the bandit take in the losses of the steps since the last time, where it is time.

        Args:
            step: Steps done.

        Raises:
            RunError: A loss is no number.
        """
        if self.bandit is None or self.mixture.adapt_every is None or step % self.mixture.adapt_every:
            return
        processes.add_up(self.losses.sums_3N)
        seen = self.losses.drain(step)
        self.bandit.update([seen[name].loss if name in seen else None for name in self.losses.names])
        self._mix(step)

    def after_evaluation(self, event: EvalEvent) -> None:
        """Look whether tasks have had their last row."""
        before = self.stopped
        self.evals.append(event)
        if self.stopped != before:
            self._mix(event.step)

    def _mix(self, step: int) -> None:
        """Let the shares of now hold from the second step to come: the rows of the next one are with the loader."""
        names, out = self.losses.names, self.stopped
        weights = self.mixture.order.first.share.tolist()
        if self.bandit is not None:  # a bandit begins with equal shares of the mix's unit, whatever these are in rows
            weights = [weight * share for weight, share in zip(weights, self.bandit.shares, strict=True)]
        weights = [0.0 if name in out else weight for name, weight in zip(names, weights, strict=True)]
        if any(weights):
            self.mixture.order.change((step + 1) * self.mixture.batch_size, weights)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on, besides the evaluations; all processes have to ask for it."""
        return {
            "order": self.mixture.order.state(),
            "bandit": self.bandit.state() if self.bandit is not None else None,
            "losses": processes.everyones(self.losses.sums_3N.tolist()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.mixture.order.restore(state["order"])
        if self.bandit is not None:
            self.bandit.restore(state["bandit"])
        self.losses.sums_3N.copy_(torch.tensor(state["losses"][processes.rank()], dtype=torch.float64))
