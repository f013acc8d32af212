"""The tasks of a mix, loaded and encoded."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Features, Sequence, Value
from numpy.typing import NDArray
from platformdirs import user_cache_path

from malora_cli.data.batch import TrainExample
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats import FORMATS
from malora_cli.data.formats._base import Example
from malora_cli.data.order import MixtureOrder
from malora_cli.data.sources import check_columns, load_rows
from malora_cli.errors import DataError
from malora_cli.recipe import MixSettings, SourceSettings, TaskSettings

_ENCODED = Features(
    {
        "prompt": Value("string"),
        "completion": Value("string"),
        "input_ids": Sequence(Value("int32")),
        "prompt_tokens": Value("int32"),
        "tokens": Value("int32"),
    }
)
#: Raise it when a change here makes cached encodings wrong.
_CACHE_VERSION = 2
#: Rows within which even the rarest task of a mixture has to be drawn; the order is laid out in blocks of them.
_LONGEST_WAIT = 4_000_000


@dataclass(frozen=True)
class Split:
    """The encoded rows of one split of one task.

    Args:
        rows: Columns ``prompt``, ``completion``, ``input_ids``, ``prompt_tokens`` and ``tokens``, which counts all.
        source: Where they came from.
        sha256: Hash of the tokens of all rows that were read, in order.
        too_long: Rows left out because they are longer than ``train.max_length``.
    """

    rows: Dataset
    source: str
    sha256: str
    too_long: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """All tokens."""
        return int(_numbers(self.rows, "tokens").sum())

    @property
    def label_tokens(self) -> int:
        """Supervised tokens."""
        return self.tokens - int(_numbers(self.rows, "prompt_tokens").sum())


@dataclass(frozen=True)
class Task:
    """One task, ready to train and evaluate on."""

    name: str
    settings: TaskSettings
    train: Split
    test: Split
    overlap: int  # test rows whose prompt is also a training prompt of any task


def load_tasks(mix: MixSettings, encoder: Encoder, *, max_length: int) -> list[Task]:
    """Read, check and encode every task of a mix.

    Rows longer than ``max_length`` and test rows that are also training rows are counted and warned of.

    Raises:
        DataError: A source is missing or unreadable, a column or a value is missing, or nothing is left of a task.
    """
    splits: dict[str, tuple[Split, Split]] = {}
    for name, settings in mix.tasks.items():
        system = settings.system if settings.system is not None else mix.system
        try:
            splits[name] = (
                _load_split(settings, settings.train, "train", system, encoder, max_length),
                _load_split(settings, settings.test, "test", system, encoder, max_length),
            )
        except DataError as error:
            raise DataError(error.what, where=f"task '{name}': {error.where}", fix=error.fix) from error
    # Hashes, since the prompts themselves may not fit into memory; two of 64 bits all but never agree by chance.
    trained = {hash(prompt) for train, _ in splits.values() for prompt in train.rows["prompt"]}
    tasks = [
        Task(name, mix.tasks[name], train, test, sum(hash(prompt) in trained for prompt in test.rows["prompt"]))
        for name, (train, test) in splits.items()
    ]
    for task in tasks:
        _warn(task, max_length)
    return tasks


def _warn(task: Task, max_length: int) -> None:
    for split, rows in (("train", task.train), ("test", task.test)):
        if rows.too_long:
            warnings.warn(
                f"task '{task.name}': {rows.too_long} {split} rows are longer than train.max_length {max_length} "
                f"tokens and are left out",
                stacklevel=3,
            )
    if task.overlap:
        warnings.warn(
            f"task '{task.name}': {task.overlap} of {len(task.test)} test rows are also training rows; "
            f"its score is too good by what was memorised",
            stacklevel=3,
        )


def _load_split(
    settings: TaskSettings, source: SourceSettings, split: str, system: str | None, encoder: Encoder, max_length: int
) -> Split:
    rows = load_rows(source, split=split)
    columns = {role: settings.columns.get(role, role) for role in FORMATS[settings.format].roles}
    check_columns(rows, columns, source)
    unknown = set(settings.columns) - set(columns)
    if unknown:
        raise DataError(
            f"format '{settings.format}' has no role '{min(unknown)}'",
            where=source.path,
            fix=f"Its roles: {', '.join(columns)}.",
        )
    fingerprint = _fingerprint(rows, settings, columns, system, encoder)
    # By default it would lie beside the rows, which a saved dataset has in a folder of the user's.
    cache = user_cache_path("malora") / "encoded" / f"{fingerprint}.arrow"
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"encoded rows cannot be kept ({error})",
            where=str(cache.parent),
            fix="Set XDG_CACHE_HOME to another folder.",
        ) from error
    encoded = rows.map(
        _encode_row,
        with_indices=True,
        fn_kwargs={
            "encoder": encoder,
            "settings": settings,
            "columns": columns,
            "system": system,
            "source": source.path,
        },
        remove_columns=rows.column_names,
        features=_ENCODED,
        new_fingerprint=fingerprint,
        cache_file_name=str(cache),
    )
    kept = np.flatnonzero(_numbers(encoded, "tokens") <= max_length)
    if len(kept) == 0:
        raise DataError(
            f"every row is longer than train.max_length {max_length} tokens", where=source.path, fix="Raise it."
        )
    shorter = encoded if len(kept) == len(encoded) else encoded.select(kept)
    return Split(shorter, source.path, _sha256(encoded), too_long=len(encoded) - len(kept))


def _encode_row(
    row: dict[str, Any],
    index: int,
    *,
    encoder: Encoder,
    settings: TaskSettings,
    columns: dict[str, str],
    system: str | None,
    source: str,
) -> dict[str, Any]:
    def wrong(what: str) -> DataError:
        return DataError(f"row {index + 1} has {what}", where=source, fix="Mend or remove the row.")

    texts = {}
    for role, column in columns.items():
        value = row[column]
        if value is None or value != value:  # nothing, or NaN, which stands for nothing in tables
            raise wrong(f"no '{column}'")
        if not isinstance(value, str | int | float):
            raise wrong(f"no text as '{column}', but a {type(value).__name__}")
        texts[role] = str(value)
    example: Example = FORMATS[settings.format].example(texts)
    if not example.completion.strip():
        raise wrong("an empty completion, so nothing of it is supervised")
    tokens = encoder.encode(example, system)
    if len(tokens.input_ids) <= max(tokens.prompt_tokens, 1):
        raise wrong("a completion of no token, so nothing of it is supervised")
    return {
        "prompt": example.prompt,
        "completion": example.completion,
        "input_ids": tokens.input_ids,
        "prompt_tokens": tokens.prompt_tokens,
        "tokens": len(tokens.input_ids),
    }


def _fingerprint(
    rows: Dataset, settings: TaskSettings, columns: dict[str, str], system: str | None, encoder: Encoder
) -> str:
    """What decides the encoded rows, and nothing else: weights and seeds may change without encoding anew."""
    parts = [_CACHE_VERSION, rows._fingerprint, settings.format, sorted(columns.items()), system, encoder.fingerprint]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _numbers(rows: Dataset, column: str) -> NDArray[np.int64]:
    return np.asarray(rows.with_format("numpy", columns=[column])[:][column], dtype=np.int64)


def _sha256(rows: Dataset) -> str:
    digest = hashlib.sha256()
    for lot in rows.with_format("arrow", columns=["prompt_tokens", "tokens", "input_ids"]).iter(1000):
        for numbers in (lot["prompt_tokens"], lot["tokens"], lot["input_ids"].combine_chunks().flatten()):
            digest.update(numbers.to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()


class Mixture:
    """The training rows of all tasks in their order; a map-style dataset over positions.

    Args:
        tasks: The tasks.
        mix: How often each is drawn.
        length: Positions, that is optimiser steps times rows a step.
        seed: Seed of the order.

    Raises:
        DataError: A task is drawn too rarely.
    """

    def __init__(self, tasks: list[Task], mix: MixSettings, *, length: int, seed: int) -> None:
        self.tasks, self.length = tasks, length
        rows = [len(task.train) for task in tasks]
        weights = {
            "proportional": [float(count) for count in rows],
            "uniform": [1.0] * len(rows),
            "explicit": [task.settings.weight or 0.0 for task in tasks],
        }[mix.weighting]
        self.order = MixtureOrder(rows, weights, seed)
        if self.order.block > _LONGEST_WAIT:
            raise DataError(
                f"it is drawn once in {self.order.block:,} rows, too rarely to be learned",
                where=f"task '{tasks[int(self.order.share.argmin())].name}'",
                fix="Give it more weight, or leave it out.",
            )

    @property
    def share(self) -> dict[str, float]:
        """Each task's share of the training rows; sums to 1."""
        return {task.name: float(share) for task, share in zip(self.tasks, self.order.share, strict=True)}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> TrainExample:
        task, row = self.order[position]
        return _example(self.tasks[task].train, row, task)


def _example(split: Split, row: int, task: int) -> TrainExample:
    found = split.rows[row]
    return TrainExample(found["input_ids"], found["prompt_tokens"], task)


def in_lots(split: Split, task: int, *, limit: int | None, size: int) -> Iterator[list[TrainExample]]:
    """The first ``limit`` rows of a split in lots of ``size``, as examples of task number ``task``."""
    rows = range(len(split) if limit is None else min(limit, len(split)))
    for start in range(0, len(rows), size):
        yield [_example(split, row, task) for row in rows[start : start + size]]
