"""An order whose weights change while training goes on: by a bandit, or because a task has learned what it will."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from malora_cli.data.order import Ints, MixtureOrder

#: A position, the rows of each task drawn before it, and the weights that hold from it on.
Part = tuple[int, list[int], list[float]]
#: Weights change at most once a step and two steps ahead, so the rows of the step at hand are in one of these.
_NEEDED = 3


class ChangingOrder:
    """Orders one after another; each goes on with a task's rows where the one before it stopped.

    Args:
        first: The order from position 0 on.
    """

    def __init__(self, first: MixtureOrder) -> None:
        self._parts = [first]
        self._known_from = 0

    @property
    def first(self) -> MixtureOrder:
        """The order that training begins with."""
        return self._parts[0]

    @property
    def share(self) -> NDArray[np.float64]:
        """Each task's share of the rows from the last change on."""
        return self._parts[-1].share

    def change(self, position: int, weights: Sequence[float]) -> None:
        """Let other weights hold from a position on, over what was to hold there; no row from it on may be drawn yet.

        Raises:
            ValueError: The position is before that of an earlier change.
        """
        if position <= 0 or position < self._parts[-1].start:
            raise ValueError(f"weights changed at position {self._parts[-1].start}, so not at {position} any more")
        if self._parts[-1].start == position:
            self._parts.pop()
        self._add((position, self._parts[-1].drawn_until(position).tolist(), list(weights)))

    def state(self) -> list[Part]:
        """What `restore` needs to go on: the newest changes."""
        return [(part.start, part.before.tolist(), part.weights) for part in self._parts[1:][-_NEEDED:]]

    def restore(self, state: Sequence[Part]) -> None:
        """Go on from where `state` was taken; what lies before is not known any more."""
        del self._parts[1:]
        for part in state:
            self._add(part)
        self._known_from = state[0][0] if len(state) == _NEEDED else 0

    def _add(self, part: Part) -> None:
        start, before, weights = part
        first = self.first
        self._parts.append(MixtureOrder(first.rows.tolist(), weights, first.seed, start=start, before=before))

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """Task and row at each position.

        Raises:
            ValueError: A position lies before what a resumed order knows.
        """
        if positions.size and positions.min() < self._known_from:
            raise ValueError(f"the order is known from position {self._known_from} on")
        tasks, rows = np.empty_like(positions), np.empty_like(positions)
        part_of = np.searchsorted([part.start for part in self._parts], positions, side="right") - 1
        for number in np.unique(part_of):
            here = part_of == number
            tasks[here], rows[here] = self._parts[number].at(positions[here])
        return tasks, rows
