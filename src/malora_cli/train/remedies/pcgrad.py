"""Gradient surgery: what one task's gradient would undo of another's is taken out of it.

Source: Yu et al., Gradient Surgery for Multi-Task Learning (PCGrad), arXiv 2001.06782, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from malora_cli.recipe import RemedySettings
from malora_cli.train.remedies._base import Remedy

if TYPE_CHECKING:
    from torch import Tensor

_SURGERY = 4  # what a random stream is for, beside the seed


class PcgradSettings(RemedySettings):
    """Gradient surgery: takes out of each task's gradient what would undo another's; holds a gradient a task."""

    one_process: ClassVar[str | None] = "surgery needs the whole gradient of each task, which no process has alone"

    def sentence(self) -> str:
        """What it does and its source, as the report says it."""
        return (
            "What would undo another task's step is taken out of each task's gradient (PCGrad; Yu et al., "
            "arXiv 2001.06782)."
        )


class Pcgrad(Remedy[PcgradSettings]):
    """The sum of the tasks' gradients, each projected onto the normal plane of those it conflicts with."""

    Settings = PcgradSettings
    splits_gradients: ClassVar[bool] = True

    def combine(self, gradients: Sequence[Sequence[Tensor]], step: int) -> list[Tensor]:
        """The sum after surgery, whose order the seed and the step decide."""
        return combine(gradients, [self.situation.seed, step])


def projected_weights(product_NN: Tensor, key: Sequence[int]) -> Tensor:
    """How much of each task's gradient is in the sum of all projected ones.

    A projection takes a multiple of another task's gradient away, so everything stays a combination of the gradients
    there were, and their inner products are all that is needed.

    Args:
        product_NN: Inner products of the tasks' gradients, float64.
        key: Decides in which order a gradient meets the others.

    Returns:
        Weights, shape ``(N,)``: all 1 where no two gradients conflict.
    """
    import torch

    count = len(product_NN)
    weights_NN = torch.eye(count, dtype=product_NN.dtype)
    for task in range(count):
        others = np.random.default_rng([*key, _SURGERY, task]).permutation(count)
        for other in (int(other) for other in others if other != task):
            against = weights_NN[task] @ product_NN[:, other]
            if against < 0:
                weights_NN[task, other] -= against / product_NN[other, other]
    return weights_NN.sum(0)


def combine(gradients: Sequence[Sequence[Tensor]], key: Sequence[int]) -> list[Tensor]:
    """The sum of the tasks' gradients after surgery.

    Args:
        gradients: Of each task, for every parameter.
        key: As in `projected_weights`.
    """
    import torch

    from malora_cli.modeling.device import exact

    count = len(gradients)
    product_NN = torch.zeros(count, count, dtype=torch.float64)
    for a in range(count):
        for b in range(a, count):
            dots = [(exact(one) * exact(two)).sum() for one, two in zip(gradients[a], gradients[b], strict=True)]
            product_NN[a, b] = product_NN[b, a] = float(torch.stack(dots).sum())
    weight_N = projected_weights(product_NN, key).tolist()
    return [
        torch.stack([weight * part for weight, part in zip(weight_N, parts, strict=True)]).sum(0)
        for parts in zip(*gradients, strict=True)
    ]


REMEDY = Pcgrad
