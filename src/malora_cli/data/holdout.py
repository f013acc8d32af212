"""A task's own test rows, where its data have no split for them."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from malora_cli.data.order import Ints, Shuffle
from malora_cli.data.rows import Rows
from malora_cli.errors import DataError
from malora_cli.recipe import HoldoutSettings
from malora_cli.registry import did_you_mean

_HOLDOUT = 3  # what a random stream is for, beside the seed


def hold_out(rows: Rows, settings: HoldoutSettings, seed: int) -> tuple[Rows, Rows]:
    """Part rows into those to train on and those to test on, each in the order of the source.

    Args:
        rows: All rows.
        settings: How many to hold out, and which column's values keep their proportions.
        seed: Decides which; nothing else does.

    Raises:
        DataError: There are not enough rows, or no such column.
    """
    total = len(rows.dataset)
    count = settings.rows if settings.rows is not None else max(1, round((settings.share or 0) * total))
    if count >= total:
        raise DataError(
            f"has {total:,} rows, so {count:,} cannot be held out",
            where=rows.source,
            fix="Hold out fewer, or name another source as `test`.",
        )
    groups = [np.arange(total)] if settings.stratify is None else _groups(rows, settings.stratify)
    quotas = _quotas([len(group) for group in groups], count)
    test = np.sort(
        np.concatenate(
            [
                group[Shuffle(len(group), [seed, _HOLDOUT, number])(np.arange(quota))]
                for number, (group, quota) in enumerate(zip(groups, quotas, strict=True))
            ]
        )
    )
    train = np.setdiff1d(np.arange(total), test, assume_unique=True)
    return rows.select(train), rows.select(test)


def _groups(rows: Rows, column: str) -> list[Ints]:
    """Row numbers by the value of a column, values in the order they first occur."""
    if column not in rows.dataset.column_names:
        nearest = did_you_mean(column, rows.dataset.column_names)
        raise DataError(f"there is no column '{column}' to stratify by; {nearest}", where=rows.source)
    values = _codes(rows.dataset, column)
    return [np.flatnonzero(values == code) for code in range(int(values.max()) + 1)]


def _codes(dataset: Dataset, column: str) -> Ints:
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(repr(value), len(seen)) for value in dataset[column]])


def _quotas(sizes: list[int], count: int) -> list[int]:
    """``count`` shared out by size, to within one (largest remainders)."""
    exact = np.asarray(sizes) * count / sum(sizes)
    whole = np.floor(exact).astype(int)
    whole[np.argsort(-(exact - whole), kind="stable")[: count - int(whole.sum())]] += 1
    return whole.tolist()
