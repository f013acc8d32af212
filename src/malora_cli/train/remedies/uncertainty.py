"""Weights of the tasks' losses that are learned with the adapter: the noisier a task, the less its loss counts.

Source: Kendall, Gal and Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses, arXiv 1705.07115, equation 10
for classification: ``sum_i L_i / sigma_i^2 + log sigma_i``, with ``s_i = log sigma_i^2`` as the parameter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from malora_cli.recipe import RemedySettings
from malora_cli.train.remedies._base import Remedy, Situation

if TYPE_CHECKING:
    from torch import Tensor, nn


class UncertaintySettings(RemedySettings):
    """Weights of the tasks' losses that are learned, the lower the noisier a task; times each task's loss_weight."""

    learning_rate: float = Field(
        default=0.01, gt=0, description="Highest learning rate of the weights' logarithms, which are on the scale of 1"
    )

    def sentence(self) -> str:
        """What it does and its source, as the report says it."""
        return (
            "Weights of the tasks' losses are learned, the lower the noisier a task (Kendall et al., arXiv 1705.07115)."
        )


class Uncertainty(Remedy[UncertaintySettings]):
    """A parameter a task; at first every loss has weight 1."""

    Settings = UncertaintySettings

    def __init__(self, settings: UncertaintySettings, situation: Situation) -> None:
        import torch

        super().__init__(settings, situation)
        self.log_variance_N = torch.nn.Parameter(torch.zeros(len(situation.tasks), device=situation.device))

    def weigh(self, nats_K: Tensor, task_K: Tensor) -> Tensor:
        """``exp(-s) nats + s / 2`` of each token, with the s of its task."""
        s_K = self.log_variance_N[task_K]
        return (-s_K).exp() * nats_K + s_K / 2

    def parameters(self) -> list[nn.Parameter]:
        """``s``, by task."""
        return [self.log_variance_N]

    @property
    def learning_rate(self) -> float:
        """The setting's."""
        return self.settings.learning_rate

    def log(self) -> dict[str, dict[str, float]]:
        """What each task's loss is multiplied by."""
        weights = (-self.log_variance_N.detach()).exp().tolist()
        return {"loss_weight": dict(zip(self.situation.tasks, weights, strict=True))}

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on."""
        return {"log_variance": self.log_variance_N.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.log_variance_N.data.copy_(self.log_variance_N.new_tensor(state["log_variance"]))


REMEDY = Uncertainty
