"""The order of a mixture: a pure function of seed and position, in exact shares, each row once an epoch."""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_cli.data.order import MixtureOrder

SEEDS = st.integers(0, 2**32 - 1)
GOLDEN = [(0, 2), (1, 1), (1, 4), (0, 1), (1, 2), (1, 3), (0, 0), (0, 1), (0, 0), (0, 2), (1, 0), (0, 1)]
ROWS = st.lists(st.integers(1, 50), min_size=1, max_size=8)


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[int], list[float], int]:
    """Rows, weights and seed; weights may differ by a factor of thousands."""
    rows = draw(ROWS)
    weight = st.one_of(st.floats(0.01, 10), st.just(1.0), st.integers(1, 1000).map(float))
    return rows, draw(st.lists(weight, min_size=len(rows), max_size=len(rows))), draw(SEEDS)


def _first(order: MixtureOrder, count: int) -> list[tuple[int, int]]:
    tasks, rows = order.at(np.arange(count))
    return list(zip(tasks.tolist(), rows.tolist(), strict=True))


@given(mixtures(), st.data())
def test_any_position_can_be_asked_for_in_any_order(
    mix: tuple[list[int], list[float], int], data: st.DataObject
) -> None:
    sequential = _first(MixtureOrder(*mix), 300)
    order = MixtureOrder(*mix)
    for position in data.draw(st.lists(st.integers(0, 299), max_size=40)):
        assert order[position] == sequential[position]


@given(mixtures())
def test_rows_are_rows_of_their_task(mix: tuple[list[int], list[float], int]) -> None:
    for task, row in _first(MixtureOrder(*mix), 200):
        assert 0 <= row < mix[0][task]


@settings(max_examples=40)
@given(mixtures())
def test_shares_are_exact_to_one_row_at_every_end_of_a_block(mix: tuple[list[int], list[float], int]) -> None:
    rows, weights, _ = mix
    order = MixtureOrder(*mix)
    share = np.asarray(weights) / sum(weights)
    blocks = max(1, min(5, 20_000 // order.block))
    counts = np.zeros(len(rows), dtype=np.int64)
    for block in range(blocks):
        positions = np.arange(block * order.block, (block + 1) * order.block)
        drawn = Counter(order.at(positions)[0].tolist())
        counts += np.asarray([drawn[task] for task in range(len(rows))])
        assert (np.abs(counts - share * len(positions) * (block + 1)) < 1).all()


@given(mixtures())
def test_every_row_comes_once_an_epoch(mix: tuple[list[int], list[float], int]) -> None:
    rows = mix[0]
    seen: list[list[int]] = [[] for _ in rows]
    for task, row in _first(MixtureOrder(*mix), 600):
        seen[task].append(row)
    for task, count in enumerate(rows):
        whole = len(seen[task]) // count * count
        for start in range(0, whole, count):
            assert sorted(seen[task][start : start + count]) == list(range(count))
        assert len(set(seen[task][whole:])) == len(seen[task][whole:])


def test_rows_are_shuffled_anew_each_epoch() -> None:
    order = MixtureOrder([30, 30], [1, 1], 0)
    rows = [row for task, row in _first(order, 240) if task == 0]
    epochs = [tuple(rows[start : start + 30]) for start in range(0, 120, 30)]
    assert len(set(epochs)) == 4
    assert all(epoch != tuple(range(30)) for epoch in epochs)


def test_tasks_of_as_many_rows_are_not_shuffled_alike() -> None:
    found = _first(MixtureOrder([30, 30], [1, 1], 0), 60)
    assert [row for task, row in found if task == 0] != [row for task, row in found if task == 1]


@given(st.lists(SEEDS, min_size=2, max_size=2, unique=True))
def test_another_seed_is_another_order(seeds: list[int]) -> None:
    first, second = (_first(MixtureOrder([40, 60], [1, 2], seed), 100) for seed in seeds)
    assert first != second


def test_the_same_seed_is_the_same_order_on_every_machine() -> None:
    assert _first(MixtureOrder([3, 5], [1, 1], 7), 12) == GOLDEN


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1, 1, 1], [400, 400, 400]), ([10, 20, 30], [200, 400, 600]), ([0.5, 1, 2.5], [150, 300, 750])],
)
def test_shares_over_whole_blocks(weights: list[float], expected: list[int]) -> None:
    order = MixtureOrder([10, 20, 30], weights, 0)
    assert 1200 % order.block == 0
    counts = Counter(task for task, _ in _first(order, 1200))
    assert [counts[task] for task in range(3)] == expected


def test_positions_left_over_go_to_the_largest_remainders() -> None:
    order = MixtureOrder([9, 9, 9], [0.5, 0.3, 0.2], 0)
    assert order.block == 12
    assert [order.drawn(blocks).tolist() for blocks in (1, 2)] == [
        [6, 4, 2],
        [12, 7, 5],
    ]  # of 6, 3.6, 2.4 and twice that


def test_a_tiny_weight_is_drawn_as_often_as_it_says() -> None:
    order = MixtureOrder([5, 1000], [1e-4, 1.0], 3)
    counts = Counter(task for task, _ in _first(order, 5 * order.block))
    assert order.block == 10_001
    assert counts[0] == 5


def test_many_tasks() -> None:
    weights = [float(number) for number in range(1, 301)]
    order = MixtureOrder([7] * 300, weights, 0)
    counts = Counter(task for task, _ in _first(order, order.block))
    assert order.block == 45_150
    assert [counts[task] for task in range(300)] == list(range(1, 301))


@given(
    st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12),
    st.one_of(st.integers(0, 100), st.integers(10**5, 10**7)),
)
def test_what_is_drawn_only_grows(weights: list[float], block: int) -> None:
    """Counts that fell from one block to the next would be a negative number of rows in it."""
    order = MixtureOrder([9] * len(weights), weights, 0)
    drawn = [order.drawn(number) for number in range(block, block + 4)]
    for number, counts in enumerate(drawn, start=block):
        assert counts.sum() == number * order.block
    assert all((later >= earlier).all() for earlier, later in pairwise(drawn))


@pytest.mark.parametrize("position", [10**7, 10**9])
def test_a_late_position_costs_no_more_than_the_first(position: int) -> None:
    def seconds(at: int) -> float:
        order = MixtureOrder([1000] * 20, [1.0] * 20, 0)
        started = time.perf_counter()
        order[at]
        return time.perf_counter() - started

    assert min(seconds(position) for _ in range(3)) < 0.05


def test_neighbouring_blocks_and_epochs_stay_in_memory() -> None:
    """Two tasks a position apart, each in two epochs, must not be shuffled again for every row."""
    order = MixtureOrder([100_000] * 4, [1.0] * 4, 0)
    for position in range(200):
        order[position]
    assert order._arrangement.cache_info().misses == -(-200 // order.block)
