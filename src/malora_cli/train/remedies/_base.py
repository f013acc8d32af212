"""What a remedy may do. The trainer and ``Adaptation`` know this interface and no remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from malora_cli.recipe import RemedySettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from malora_cli.results import EvalEvent

S = TypeVar("S", bound=RemedySettings)


@dataclass(frozen=True)
class Situation:
    """What a remedy is told of the run.

    Args:
        tasks: Names of the tasks, in the order of their numbers.
        seed: That of the training.
        device: Where losses and gradients are.
    """

    tasks: Sequence[str]
    seed: int
    device: torch.device


class Remedy(Generic[S]):
    """One thing done against tasks getting in each other's way. Every hook does nothing unless it is overridden.

    Args:
        settings: The recipe's.
        situation: The run.
    """

    #: What the recipe may say about it.
    Settings: ClassVar[type[RemedySettings]]
    #: Whether `combine` wants the gradient of each task apart: a backward pass a task, as many gradients as tasks.
    splits_gradients: ClassVar[bool] = False

    def __init__(self, settings: S, situation: Situation) -> None:
        self.settings, self.situation = settings, situation

    # Losses

    def weigh(self, nats_K: Tensor, task_K: Tensor) -> Tensor:
        """What each supervised token costs, in the place of its nats.

        Args:
            nats_K: Nats of each token of a micro-batch, as weighed so far.
            task_K: Number of its task.
        """
        return nats_K

    def parameters(self) -> Sequence[nn.Parameter]:
        """What is trained with the adapter; processes share its gradients."""
        return ()

    @property
    def learning_rate(self) -> float:
        """Highest learning rate of `parameters`; it takes the course of the adapter's."""
        raise LookupError(f"{type(self).__name__} has parameters and no learning rate")

    # Gradients

    def combine(self, gradients: Sequence[Sequence[Tensor]], step: int) -> list[Tensor]:
        """The gradient of a step, for every parameter, where `splits_gradients`.

        Args:
            gradients: That of each task in the step, for every parameter.
            step: Steps done before.
        """
        raise LookupError(f"{type(self).__name__} splits gradients and does not combine them")

    # Shares of the tasks among the rows

    @property
    def losses_every(self) -> int | None:
        """Steps from one call of `learn_of` to the next; None never calls it."""
        return None

    def learn_of(self, losses: Sequence[float | None]) -> None:
        """Take in the training loss of each task since the last time, nats a token; None where it had no token."""

    @property
    def factors(self) -> Sequence[float] | None:
        """What the weight of each task in the mixture is multiplied by from here on; None changes none."""
        return None

    def stopped(self, evals: Sequence[EvalEvent]) -> set[str]:
        """Tasks that are no longer drawn, by all evaluations so far; the run ends when none is."""
        return set()

    # The log and checkpoints

    def log(self) -> Mapping[str, Any]:
        """Fields of the `TrainEvent` of a log step."""
        return {}

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on, as JSON; evaluations so far are given to `stopped` anew."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
