"""A task's own test rows, where its data have no split for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from datasets import Dataset

from malora_cli.data.order import Ints, Shuffle
from malora_cli.data.rows import Rows
from malora_cli.errors import DataError
from malora_cli.recipe import HoldoutSettings
from malora_cli.registry import did_you_mean

#: What is held out of a task that says nothing of test rows: a share of its rows, and how many at most.
USUAL_SHARE, USUAL_ROWS = 0.05, 200
_HOLDOUT = 3  # what a random stream is for, beside the seed


def hold_out(rows: Rows, settings: HoldoutSettings | None, seed: int) -> tuple[Rows, Rows]:
    """Part rows into those to train on and those to test on, each in the order of the source.

    Args:
        rows: All rows.
        settings: How many to hold out, and which column's values keep their proportions or stay together; None for the
            usual number.
        seed: Decides which; nothing else does.

    Raises:
        DataError: There are not enough rows or groups, or no such column.
    """
    total = len(rows.dataset)
    if settings is None:
        settings = HoldoutSettings(rows=min(USUAL_ROWS, max(1, round(USUAL_SHARE * total))))
    count = settings.rows if settings.rows is not None else max(1, round((settings.share or 0) * total))
    if count >= total:
        raise DataError(
            f"has {total:,} {'row' if total == 1 else 'rows'}, so {count:,} cannot be held out",
            where=rows.source,
            fix="Hold out fewer, or name another source as `test`.",
        )
    if settings.group is not None:
        test = _whole_groups(_groups(rows, settings.group, "group by"), count, seed, rows.source)
    else:
        column = settings.stratify
        groups = [np.arange(total)] if column is None else _groups(rows, column, "stratify by")
        test = _of_each(groups, count, seed)
    train = np.setdiff1d(np.arange(total), test, assume_unique=True)
    return rows.select(train), replace(rows.select(test), unused=())  # which are told of once


def _of_each(groups: Sequence[Ints], count: int, seed: int) -> Ints:
    """So many rows of all groups, of each by its size."""
    quotas = _quotas([len(group) for group in groups], count)
    taken = [
        group[Shuffle(len(group), [seed, _HOLDOUT, number])(np.arange(quota))]
        for number, (group, quota) in enumerate(zip(groups, quotas, strict=True))
    ]
    return np.sort(np.concatenate(taken))


def _whole_groups(groups: Sequence[Ints], count: int, seed: int, source: str) -> Ints:
    """Groups in an order of chance, each that still fits among so many rows."""
    taken, left = list[Ints](), count
    for number in Shuffle(len(groups), [seed, _HOLDOUT])(np.arange(len(groups))):
        if len(groups[number]) <= left:
            taken.append(groups[number])
            left -= len(groups[number])
    if not taken:
        smallest = min(len(group) for group in groups)
        raise DataError(
            f"the smallest group has {smallest:,} rows, more than the {count:,} to hold out",
            where=source,
            fix="Hold out more, or group by a column of more values.",
        )
    return np.sort(np.concatenate(taken))


def _groups(rows: Rows, column: str, purpose: str) -> list[Ints]:
    """Row numbers by the value of a column, values in the order they first occur."""
    if column not in rows.dataset.column_names:
        nearest = did_you_mean(column, rows.dataset.column_names)
        raise DataError(f"column not found: '{column}' to {purpose}; {nearest}", where=rows.source)
    values = _codes(rows.dataset, column)
    return np.split(np.argsort(values, kind="stable"), np.cumsum(np.bincount(values))[:-1])


def _codes(dataset: Dataset, column: str) -> Ints:
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(repr(value), len(seen)) for value in dataset[column]])


def _quotas(sizes: list[int], count: int) -> list[int]:
    """``count`` shared out by size, to within one (largest remainders)."""
    exact = np.asarray(sizes) * count / sum(sizes)
    whole = np.floor(exact).astype(int)
    whole[np.argsort(-(exact - whole), kind="stable")[: count - int(whole.sum())]] += 1
    return whole.tolist()
