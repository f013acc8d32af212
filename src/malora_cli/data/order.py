"""Which row comes at which position: a pure function of the seed and the position.

Positions are cut into blocks. Over the first b blocks each task gets its share of the positions to within one (the
largest-remainder rule), so a task's count never strays from its share by more than a block; within a block the order
is random. A task's rows are shuffled anew each time it has been through all of them. Nothing depends on how the
positions before were visited, and no order is stored, so a run resumes anywhere without replay and a task may have any
number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_BLOCK = 0  # what a random stream is for, beside the seed
_SHUFFLE = 1
_ROUNDS = 8


class Shuffle:
    """A random permutation of ``range(size)`` that is computed index by index, in no memory.

    A number is split into its quotient and remainder by the square root of the size, each in turn is shifted by a hash
    of the other, and what falls outside the range goes round again (Black and Rogaway, Ciphers with Arbitrary Finite
    Domains, CT-RSA 2002).

    Args:
        size: Numbers to permute, from 0.
        key: Numbers that decide the permutation.
    """

    def __init__(self, size: int, key: Sequence[int]) -> None:
        self.size = size
        self._right = np.uint64(isqrt(max(size - 1, 0)) + 1)
        self._left = np.uint64(-(-size // int(self._right)))
        self._keys = np.random.SeedSequence(list(key)).generate_state(_ROUNDS, np.uint64)

    def __call__(self, index: Ints) -> Ints:
        """Where each index goes."""
        value = index.astype(np.uint64)
        left, right = self._rounds(value // self._right, value % self._right)
        value = left * self._right + right
        outside = value >= self.size
        if outside.any():
            value[outside] = self._walk(value[outside])
        return value.astype(np.int64)

    def _walk(self, value: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = self._rounds(value // self._right, value % self._right)
        value = left * self._right + right
        outside = value >= self.size
        if outside.any():
            value[outside] = self._walk(value[outside])
        return value

    def _rounds(
        self, left: NDArray[np.uint64], right: NDArray[np.uint64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        for number, key in enumerate(self._keys):
            if number % 2:
                right = (right + _hash(left, key) % self._right) % self._right
            else:
                left = (left + _hash(right, key) % self._left) % self._left
        return left, right


def _hash(value: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014), modulo 2^64."""
    value = (value ^ key) * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@dataclass(frozen=True)
class AllBut:
    """All numbers from 0 but for some; however many there are, only those that are left out take memory.

    Args:
        out: Numbers that are left out, in ascending order.
    """

    out: Ints

    @cached_property
    def _before(self) -> Ints:
        """How many of the numbers that are left stand before each that is left out."""
        return self.out - np.arange(len(self.out))

    def __call__(self, places: Ints) -> Ints:
        """The numbers that stand at some places among those that are left."""
        return places + np.searchsorted(self._before, places, side="right")


class MixtureOrder:
    """The order of a mixture.

    Args:
        rows: Rows of each task.
        weights: How often each task is drawn, relative to the others; 0 is never.
        seed: Seed of the order.
        start: Position from which these weights hold.
        before: Rows of each task drawn before that.
    """

    def __init__(
        self,
        rows: Sequence[int],
        weights: Sequence[float],
        seed: int,
        *,
        start: int = 0,
        before: Sequence[int] | None = None,
    ) -> None:
        self.rows = np.asarray(rows, dtype=np.int64)
        self.weights, self.seed, self.start = list(weights), seed, start
        self.share = np.asarray(weights, dtype=np.float64) / float(sum(weights))
        self.before = np.zeros_like(self.rows) if before is None else np.asarray(before, dtype=np.int64)
        # With at least one row of the rarest task in a block, counts can only grow from block to block.
        self.block = max(4 * len(rows), int(np.ceil(1.0 / self.share[self.share > 0].min())))
        self._arrangement = lru_cache(maxsize=2)(self._make_arrangement)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Task and row at a position, both from 0."""
        tasks, rows = self.at(np.array([position]))
        return int(tasks[0]), int(rows[0])

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """Task and row at each position, none of them before the start."""
        tasks, nth = np.empty_like(positions), np.empty_like(positions)
        blocks, offsets = np.divmod(positions - self.start, self.block)
        for block in np.unique(blocks):
            here = blocks == block
            arranged, occurrence = self._arrangement(int(block))
            tasks[here], nth[here] = arranged[offsets[here]], occurrence[offsets[here]]
        nth += self.before[tasks]
        epochs, rows = np.divmod(nth, self.rows[tasks])
        for task, epoch in np.unique(np.stack([tasks, epochs]), axis=1).T:
            here = (tasks == task) & (epochs == epoch)
            shuffle = Shuffle(int(self.rows[task]), [self.seed, _SHUFFLE, int(task), int(epoch)])
            rows[here] = shuffle(rows[here])
        return tasks, rows

    def drawn_until(self, position: int) -> Ints:
        """Rows of each task before a position, those before the start included."""
        blocks, offset = divmod(position - self.start, self.block)
        tasks, _ = self._arrangement(blocks)
        return self.before + self.drawn(blocks) + np.bincount(tasks[:offset], minlength=len(self.rows))

    def drawn(self, blocks: int) -> Ints:
        """Rows of each task within the first ``blocks`` blocks."""
        quota = self.share * blocks * self.block
        counts = np.floor(quota + 1e-9).astype(np.int64)
        left = blocks * self.block - int(counts.sum())
        counts[np.argsort(-(quota - counts), kind="stable")[:left]] += 1
        return counts

    def until_first(self, counts: Sequence[int]) -> int:
        """Positions before any task would need one row more than its count."""
        wanted = np.asarray(counts, dtype=np.int64)
        block = self._block_before(lambda drawn: bool((drawn > wanted).any()))
        tasks, occurrence = self._arrangement(block)
        return block * self.block + int(np.argmax(occurrence >= wanted[tasks]))

    def until_all(self, counts: Sequence[int]) -> int:
        """Positions after which every task has had as many rows as its count."""
        wanted = np.asarray(counts, dtype=np.int64)
        block = self._block_before(lambda drawn: bool((drawn >= wanted).all()))
        tasks, occurrence = self._arrangement(block)
        return block * self.block + int(np.flatnonzero(occurrence < wanted[tasks])[-1]) + 1

    def _block_before(self, holds: Callable[[Ints], bool]) -> int:
        """The block within which a condition on the rows drawn so far, once true always true, becomes true."""
        high = 1
        while not holds(self.drawn(high)):
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(self.drawn(middle)) else (middle, high)
        return low

    def _make_arrangement(self, block: int) -> tuple[Ints, Ints]:
        before, after = self.drawn(block), self.drawn(block + 1)
        tasks = np.repeat(np.arange(len(before)), after - before)
        since = [self.start] if self.start else []
        np.random.default_rng([self.seed, _BLOCK, block, *since]).shuffle(tasks)
        occurrence = np.empty_like(tasks)
        counted = [np.arange(first, end) for first, end in zip(before, after, strict=True)]
        occurrence[np.argsort(tasks, kind="stable")] = np.concatenate(counted)
        return tasks, occurrence
