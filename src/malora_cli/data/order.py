"""Which row comes at which position: a pure function of the seed and the position.

Positions are cut into blocks. Over the first b blocks each task gets its share of the positions to within one (the
largest-remainder rule), so a task's count never strays from its share by more than a block; within a block the order
is random. A task's rows are shuffled anew each time it has been through all of them. Nothing depends on how the
positions before were visited, so a run resumes anywhere without replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_BLOCK = 0  # what a random stream is for, beside the seed
_SHUFFLE = 1


class MixtureOrder:
    """The order of a mixture.

    Args:
        rows: Rows of each task.
        weights: How often each task is drawn, relative to the others.
        seed: Seed of the order.
    """

    def __init__(self, rows: Sequence[int], weights: Sequence[float], seed: int) -> None:
        self.rows = np.asarray(rows, dtype=np.int64)
        self.share = np.asarray(weights, dtype=np.float64) / float(sum(weights))
        self.seed = seed
        # With at least one row of the rarest task in a block, counts can only grow from block to block.
        self.block = max(4 * len(rows), int(np.ceil(1.0 / self.share.min())))
        self._arrangement = lru_cache(maxsize=2)(self._make_arrangement)
        self._shuffle = lru_cache(maxsize=2 * len(rows))(self._make_shuffle)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Task and row at a position, both from 0."""
        block, offset = divmod(position, self.block)
        tasks, occurrence = self._arrangement(block)
        task, nth = int(tasks[offset]), int(occurrence[offset])
        epoch, at = divmod(nth, int(self.rows[task]))
        return task, int(self._shuffle(task, epoch)[at])

    def drawn(self, blocks: int) -> Ints:
        """Rows of each task within the first ``blocks`` blocks."""
        quota = self.share * blocks * self.block
        counts = np.floor(quota + 1e-9).astype(np.int64)
        left = blocks * self.block - int(counts.sum())
        counts[np.argsort(-(quota - counts), kind="stable")[:left]] += 1
        return counts

    def _make_arrangement(self, block: int) -> tuple[Ints, Ints]:
        before, after = self.drawn(block), self.drawn(block + 1)
        tasks = np.repeat(np.arange(len(before)), after - before)
        np.random.default_rng([self.seed, _BLOCK, block]).shuffle(tasks)
        occurrence = np.empty_like(tasks)
        counted = [np.arange(first, end) for first, end in zip(before, after, strict=True)]
        occurrence[np.argsort(tasks, kind="stable")] = np.concatenate(counted)
        return tasks, occurrence

    def _make_shuffle(self, task: int, epoch: int) -> Ints:
        rng = np.random.default_rng([self.seed, _SHUFFLE, task, epoch])
        return rng.permutation(int(self.rows[task]))
