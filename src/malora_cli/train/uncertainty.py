"""Weights of the tasks' losses that are learned with the adapter: the noisier a task, the less its loss counts.

Source: Kendall, Gal and Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses, arXiv 1705.07115, equation 10
for classification: ``sum_i L_i / sigma_i^2 + log sigma_i``, with ``s_i = log sigma_i^2`` as the parameter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from malora_cli.train import processes

#: Of the parameters s_i; they are few and on the scale of 1, whatever suits the adapter.
LEARNING_RATE = 0.01


class UncertaintyWeights(nn.Module):
    """A parameter a task; at first every loss has weight 1.

    Args:
        tasks: Number of tasks.
        device: Where the losses are.
    """

    def __init__(self, tasks: int, device: torch.device) -> None:
        super().__init__()
        self.log_variance_N = nn.Parameter(torch.zeros(tasks, device=device))

    def forward(self, nats_K: Tensor, task_K: Tensor) -> Tensor:
        """``exp(-s) nats + s / 2`` of each token, with the s of its task."""
        s_K = self.log_variance_N[task_K]
        return torch.exp(-s_K) * nats_K + s_K / 2

    def by_task(self, names: Sequence[str]) -> dict[str, float]:
        """What each task's loss is multiplied by."""
        return dict(zip(names, torch.exp(-self.log_variance_N.detach()).tolist(), strict=True))

    def share_gradient(self) -> None:
        """The mean of all processes' gradients, in the place of this one's: what they have of the adapter's."""
        if self.log_variance_N.grad is not None:
            processes.add_up(self.log_variance_N.grad).div_(processes.world_size())

    @torch.no_grad()
    def restore(self, log_variance: Sequence[float]) -> None:
        """Go on with parameters that were saved."""
        self.log_variance_N.copy_(torch.tensor(log_variance))
