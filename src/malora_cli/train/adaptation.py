"""What the remedies of a run come to: the cost of a token, the gradient of a step, and the shares of the tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from malora_cli.data.batch import Batch
from malora_cli.data.mixture import Mixture
from malora_cli.recipe import RemediesSettings
from malora_cli.results import EvalEvent
from malora_cli.train import processes
from malora_cli.train.remedies import REMEDIES
from malora_cli.train.remedies._base import Remedy, Situation
from malora_cli.train.task_losses import TaskLosses


class Adaptation:
    """All remedies of a run, as the trainer sees them.

    Args:
        chosen: The recipe's section.
        mixture: The training rows; its order is what is changed.
        evals: Evaluations so far, those of a resumed run.
        seed: That of the training.
        device: Where losses are.
    """

    def __init__(
        self,
        chosen: RemediesSettings,
        mixture: Mixture,
        *,
        evals: Sequence[EvalEvent],
        seed: int,
        device: torch.device,
    ) -> None:
        self.mixture, self.evals, self.names = mixture, list(evals), [task.name for task in mixture.tasks]
        situation = Situation(self.names, seed, device)
        self.remedies: dict[str, Remedy[Any]] = {
            name: REMEDIES[name](settings, situation) for name, settings in chosen.chosen.items()
        }
        self._changes_shares = any(settings.changes_shares for settings in chosen.chosen.values())
        self._losses = {
            name: TaskLosses(self.names, device)
            for name, remedy in self.remedies.items()
            if remedy.losses_every is not None
        }
        #: Tasks that are no longer drawn.
        self.stopped = self._stopped()
        weights = [task.settings.loss_weight for task in mixture.tasks]
        # None leaves the sums as they are, to the last bit.
        self._loss_weight_N = None if set(weights) == {1.0} else torch.tensor(weights, device=device)

    # Losses

    @property
    def ledgers(self) -> list[TaskLosses]:
        """Sums over micro-batches that remedies learn of; the trainer takes back what a step began in vain."""
        return list(self._losses.values())

    def weigh(self, nats_K: Tensor, batch: Batch) -> Tensor:
        """What each supervised token of a micro-batch costs."""
        for remedy in self.remedies.values():
            nats_K = remedy.weigh(nats_K, batch["tasks"])
        return nats_K if self._loss_weight_N is None else nats_K * self._loss_weight_N[batch["tasks"]]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What remedies train, as groups of the optimiser."""
        return [
            {"params": list(parameters), "lr": remedy.learning_rate, "weight_decay": 0.0}
            for remedy in self.remedies.values()
            if (parameters := remedy.parameters())
        ]

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for remedy in self.remedies.values() for parameter in remedy.parameters()]

    def zero_grad(self) -> None:
        """Forget the gradients of what remedies train."""
        for parameter in self._parameters():
            parameter.grad = None

    def share_gradients(self) -> None:
        """The mean of all processes' gradients, in the place of this one's: what they have of the adapter's."""
        for parameter in self._parameters():
            if parameter.grad is not None:
                processes.add_up(parameter.grad).div_(processes.world_size())

    # Gradients

    @property
    def surgeon(self) -> Remedy[Any] | None:
        """The remedy that wants each task's gradient apart, if one does."""
        return next((remedy for remedy in self.remedies.values() if remedy.splits_gradients), None)

    # Shares of the tasks

    def _stopped(self) -> set[str]:
        return set[str]().union(*(remedy.stopped(self.evals) for remedy in self.remedies.values()))

    @property
    def over(self) -> bool:
        """Whether no task is drawn any more."""
        return len(self.stopped) == len(self.names)

    @property
    def share(self) -> dict[str, float] | None:
        """Each task's share of the rows from here on; None where shares never change."""
        if not self._changes_shares:
            return None
        return {name: float(share) for name, share in zip(self.names, self.mixture.order.share, strict=True)}

    def after_step(self, step: int) -> None:
        """Let remedies take in the losses of the steps since the last time, where it is time.

        Args:
            step: Steps done.

        Raises:
            RunError: A loss is NaN or infinite.
        """
        due = {name: sums for name, sums in self._losses.items() if step % (self.remedies[name].losses_every or 1) == 0}
        for name, sums in due.items():
            processes.add_up(sums.sums_3N)
            seen = sums.drain(step)
            remedy = self.remedies[name]
            remedy.learn_of([seen[task].loss if task in seen else None for task in self.names])
            # Where machines differ in a last bit, all go by the same numbers.
            remedy.restore(processes.the_writers(remedy.state()))
        if due:
            self._mix(step)

    def after_evaluation(self, event: EvalEvent) -> None:
        """Look whether tasks have had their last row."""
        before = self.stopped
        self.evals.append(event)
        self.stopped = self._stopped()
        if self.stopped != before:
            self._mix(event.step)

    def _mix(self, step: int) -> None:
        """Let the shares of now hold from the second step to come: the rows of the next one are with the loader."""
        weights = self.mixture.order.first.share.tolist()
        for remedy in self.remedies.values():
            if (factors := remedy.factors) is not None:
                weights = [weight * factor for weight, factor in zip(weights, factors, strict=True)]
        out = self.stopped
        weights = [0.0 if name in out else weight for name, weight in zip(self.names, weights, strict=True)]
        if any(weights):
            self.mixture.order.change((step + 1) * self.mixture.batch_size, weights)

    # The log and checkpoints

    def validation_losses(self, step: int) -> dict[str, float] | None:
        """The validation loss of every task after a step; None where it was not evaluated."""
        found = next((event for event in reversed(self.evals) if event.step == step), None)
        if found is None:
            return None
        return {name: task.loss for name, task in found.tasks.items() if task.loss is not None}

    def log(self) -> Mapping[str, Any]:
        """Fields of the `TrainEvent` of a log step."""
        fields: dict[str, Any] = {"task_share": self.share}
        for remedy in self.remedies.values():
            fields |= remedy.log()
        return fields

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on, besides the evaluations; all processes have to ask for it."""
        return {
            "order": self.mixture.order.state(),
            "remedies": {name: remedy.state() for name, remedy in self.remedies.items()},
            "losses": {name: processes.everyones(sums.sums_3N.tolist()) for name, sums in self._losses.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.mixture.order.restore(state["order"])
        for name, remedy in self.remedies.items():
            remedy.restore(state["remedies"][name])
        for name, sums in self._losses.items():
            mine = state["losses"][name][processes.rank()]
            sums.sums_3N.copy_(torch.tensor(mine, dtype=torch.float64))
