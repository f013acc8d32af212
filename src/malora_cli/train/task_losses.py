"""The loss of every task between two log steps, summed on the device and read back once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from malora_cli.errors import DivergedError
from malora_cli.modeling.device import exact, exact_device
from malora_cli.results import TaskLoss


def diverged(task: str, step: int) -> DivergedError:
    """What is raised when a loss is no number any more: nothing that comes after could be."""
    return DivergedError(
        f"the loss of task '{task}' is not a finite number",
        where=f"step {step}",
        fix="Train again under another name (output.name=NAME) with a lower train.learning_rate."
        if step
        else "The base model itself answers this: take another model.dtype or model.attention.",
    )


class TaskLosses:
    """Sums of nats, tokens and examples by task.

    Sums are float64, so that the tasks add up to the total whatever the order of the additions.

    Args:
        names: Names of the tasks.
        device: Where the losses are.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = list(names)
        self.sums_3N = torch.zeros(3, len(self.names), dtype=torch.float64, device=exact_device(device))

    def add(self, nats_K: Tensor, task_K: Tensor, example_K: Tensor) -> None:
        """Add one micro-batch without waiting for the device.

        Args:
            nats_K: Nats of each supervised token.
            task_K: Task of each.
            example_K: Example of each within the micro-batch, ascending.
        """
        first_K = torch.ones_like(example_K)
        first_K[1:] = example_K[1:] != example_K[:-1]
        values_3K = torch.stack([exact(values_K.detach()) for values_K in (nats_K, torch.ones_like(nats_K), first_K)])
        self.sums_3N.index_add_(1, task_K.to(values_3K.device), values_3K)

    def drain(self, step: int) -> dict[str, TaskLoss]:
        """What came together since the last time, tasks without a token left out.

        Args:
            step: The step that is done, for the message.

        Raises:
            DivergedError: A loss is no number.
        """
        nats, tokens, examples = self.sums_3N.tolist()
        self.sums_3N.zero_()
        for name, total in zip(self.names, nats, strict=True):
            if not math.isfinite(total):
                raise diverged(name, step)
        return {
            name: TaskLoss(nats=nats[i], tokens=int(tokens[i]), examples=int(examples[i]))
            for i, name in enumerate(self.names)
            if tokens[i]
        }
