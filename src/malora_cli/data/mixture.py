"""The mixture: how often each task is drawn, how long training lasts, and the rows in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from operator import mul

import numpy as np

from malora_cli.data.batch import TrainExample
from malora_cli.data.changing import ChangingOrder
from malora_cli.data.order import Ints, MixtureOrder
from malora_cli.data.tasks import Task
from malora_cli.errors import DataError
from malora_cli.recipe import MixSettings, TrainSettings

#: Rows within which even the rarest task of a mixture has to be drawn; the order is laid out in blocks of them.
_LONGEST_WAIT = 4_000_000


def example_weights(tasks: Sequence[Task], mix: MixSettings) -> list[float]:
    """How often an example of each task is drawn, relative to the others.

    Temperature weighting takes sizes to the power of 1 / T (Arivazhagan et al., arXiv 1907.05019; mT5, arXiv
    2010.11934, calls 1 / T alpha). Where the unit is label tokens, so are sizes and weights, and a task is drawn the
    less often the more supervised tokens its examples have.
    """
    labels = [task.train.label_tokens / len(task.train) for task in tasks]
    per_example = labels if mix.unit == "label_tokens" else [1.0] * len(tasks)
    sizes = [len(task.train) * task.settings.repeats * unit for task, unit in zip(tasks, per_example, strict=True)]
    weights = {
        "proportional": sizes,
        "uniform": [1.0] * len(tasks),
        "temperature": [size ** (1 / (mix.temperature or 1.0)) for size in sizes],
        "explicit": [task.settings.weight or 0.0 for task in tasks],
    }[mix.weighting]
    return [weight / unit for weight, unit in zip(weights, per_example, strict=True)]


@dataclass(frozen=True)
class Mixture:
    """The training rows of all tasks in their order; a map-style dataset over positions.

    Args:
        tasks: The tasks.
        order: Their order.
        steps: Optimiser steps.
        batch_size: Rows of each.
    """

    tasks: Sequence[Task]
    order: ChangingOrder
    steps: int
    batch_size: int

    @property
    def share(self) -> dict[str, float]:
        """Each task's share of the training rows as training begins; sums to 1."""
        return {task.name: float(share) for task, share in zip(self.tasks, self.order.first.share, strict=True)}

    @property
    def label_share(self) -> dict[str, float]:
        """Each task's share of the supervised tokens; sums to 1."""
        share = self.share
        labels = {task.name: share[task.name] * task.train.label_tokens / len(task.train) for task in self.tasks}
        total = sum(labels.values())
        return {name: count / total for name, count in labels.items()}

    @property
    def passes(self) -> dict[str, float]:
        """How often training goes through the rows of each task."""
        share = self.share
        return {task.name: share[task.name] * len(self) / len(task.train) for task in self.tasks}

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __getitem__(self, position: int) -> TrainExample:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[TrainExample]:
        """The rows at some positions: what a data loader asks for, one reading a task."""
        tasks, rows = self.order.at(np.asarray(positions, dtype=np.int64))
        found: dict[int, TrainExample] = {}
        for task in np.unique(tasks):
            here = np.flatnonzero(tasks == task)
            examples = self.tasks[task].train.examples(rows[here].tolist(), int(task))
            found |= dict(zip(here.tolist(), examples, strict=True))
        return [found[number] for number in range(len(positions))]

    def lengths(self, positions: Ints) -> Ints:
        """Tokens of the rows at some positions."""
        tasks, rows = self.order.at(positions)
        lengths = np.empty_like(positions)
        for task in np.unique(tasks):
            here = tasks == task
            lengths[here] = self.tasks[task].train.lengths(rows[here])
        return lengths


def lay_out(tasks: Sequence[Task], mix: MixSettings, train: TrainSettings) -> Mixture:
    """The mixture that a recipe asks for.

    Raises:
        DataError: A task is drawn too rarely, or training would end before its first step.
    """
    rows = [len(task.train) for task in tasks]
    order = MixtureOrder(rows, example_weights(tasks, mix), train.seed)
    if order.block > _LONGEST_WAIT:
        raise DataError(
            f"it is drawn once in {order.block:,} rows, too rarely to be learned",
            where=f"task '{tasks[int(np.where(order.share > 0, order.share, 1).argmin())].name}'",
            fix="Give it more weight, or leave it out.",
        )
    trained = (order.share > 0).tolist()  # a task of weight 0 has nothing to exhaust
    wanted = [on * count * task.settings.repeats for on, count, task in zip(trained, rows, tasks, strict=True)]
    if train.stop == "first_exhausted":
        steps = order.until_first(wanted) // train.batch_size
        if not steps:
            raise DataError(
                f"its {rows[int(order.share.argmax())]:,} rows are exhausted before the first step of "
                f"{train.batch_size} rows",
                where=f"task '{tasks[int(order.share.argmax())].name}'",
                fix="Set train.stop to all_exhausted, or train.batch_size lower.",
            )
    elif train.stop == "all_exhausted":
        steps = ceil(order.until_all(wanted) / train.batch_size)
    else:
        steps = train.steps or ceil((train.epochs or 0) * sum(map(mul, trained, rows)) / train.batch_size)
    return Mixture(tasks, ChangingOrder(order), steps, train.batch_size)
