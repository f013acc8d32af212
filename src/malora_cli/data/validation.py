"""Rows that are kept out of training to measure and choose by, so that test rows are left to `malora eval`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from malora_cli.data.cache import cached, key_of
from malora_cli.data.order import Ints
from malora_cli.data.splits import Split
from malora_cli.recipe import ValidationSettings

_POSITIONS = "positions.arrow"
#: The share of its rows that a task can spare at most, or else twice what is asked for: chance gives more or less.
_SPARED = 0.2

Numbers = NDArray[np.uint64]


def kept_back(train: Split, settings: ValidationSettings, *, seed: int, cut_at: int | None) -> Ints:
    """Which of a task's encoded training rows are kept for validation, in ascending order; kept in the cache.

    Every prompt has a number from a hash of it and the seed, white space and case aside. Those with a number in the
    first ``share`` of all numbers are taken, or else the one with the lowest, each with all of its rows. So no row has
    a say in what becomes of another, and the place of a row has none. Prompts are left to training where one of their
    rows may have been cut, and where they have more rows than the task can spare.

    Args:
        train: All encoded training rows of a task.
        settings: How many.
        seed: The mix's.
        cut_at: Tokens at which rows were cut; None where none was.
    """
    key = key_of("validation", train.key, settings.model_dump(), seed, cut_at)
    folder, _ = cached(key, lambda scratch: _keep_back(train, settings, seed, cut_at, scratch))
    with pa.memory_map(str(folder / _POSITIONS)) as file:
        return np.array(pa.ipc.open_file(file).read_all()["position"], dtype=np.int64)


def _keep_back(
    train: Split, settings: ValidationSettings, seed: int, cut_at: int | None, scratch: Path
) -> dict[str, Any]:
    room = min(settings.rows, int(max(2 * settings.share, _SPARED) * len(train)), len(train) - 1)
    positions = _fitting(train, *_first(train, settings.share, seed), room=room, cut_at=cut_at)
    if not len(positions):  # as in a task of few rows
        positions = _fitting(train, *_first(train, 1.0, seed), room=room, cut_at=cut_at, prompts=1)
    table = pa.table({"position": positions})
    with pa.ipc.new_file(str(scratch / _POSITIONS), table.schema) as writer:
        writer.write_table(table)
    return {"source": train.source, "kept_back": len(positions)}


def _first(train: Split, share: float, seed: int) -> tuple[Numbers, Ints]:
    """Number and position of the rows whose prompts have a number in the first ``share`` of all."""
    bound = np.uint64(min(int(share * 2**64), 2**64 - 1))
    found, positions = [], []
    start = 0
    for texts in train.texts("prompt"):
        numbers = _numbers(texts, seed)
        here = np.flatnonzero(numbers <= bound)
        found.append(numbers[here])
        positions.append(start + here)
        start += len(texts)
    return np.concatenate(found), np.concatenate(positions)


def _numbers(prompts: pa.Array, seed: int) -> Numbers:
    """The number of each prompt, from 0 to 2^64 - 1; the same on every machine."""
    salt = seed.to_bytes(hashlib.blake2b.SALT_SIZE)
    texts = (" ".join(prompt.split()).casefold().encode() for prompt in prompts.to_pylist())
    digests = b"".join(hashlib.blake2b(text, digest_size=8, salt=salt).digest() for text in texts)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def _fitting(
    train: Split, numbers: Numbers, positions: Ints, *, room: int, cut_at: int | None, prompts: int | None = None
) -> Ints:
    """Positions of the prompts with the lowest numbers that fit among so many rows, and of at most so many prompts."""
    cut = numbers[train.lengths(positions) >= cut_at] if cut_at is not None else ()
    values, counts = np.unique(numbers[~np.isin(numbers, cut)], return_counts=True)
    taken: list[int] = []
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if count <= room and len(taken) != prompts:
            taken.append(value)
            room -= count
    return positions[np.isin(numbers, np.array(taken, dtype=np.uint64))]
