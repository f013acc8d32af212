"""The tasks of a mix, loaded and encoded."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from malora_cli.data.batch import TrainExample
from malora_cli.data.columns import RowReader
from malora_cli.data.encode_rows import Encoding
from malora_cli.data.encoding import Encoder
from malora_cli.data.filters import kept
from malora_cli.data.formats import FORMATS
from malora_cli.data.holdout import hold_out
from malora_cli.data.overlap import RUN, Overlap, overlaps
from malora_cli.data.reach import one_answer, out_of_reach
from malora_cli.data.rows import Rows
from malora_cli.data.sources import load_rows
from malora_cli.data.splits import Split
from malora_cli.data.validation import kept_back
from malora_cli.errors import DataError
from malora_cli.recipe import LengthPolicy, MixSettings, SourceSettings, TaskSettings

_KEPT_TOGETHER = " (`holdout: {share: 0.05, group: COLUMN}` keeps rows of one prompt on one side)"
#: Faults that are shown at once.
_FAULTS = 20
#: The rows of a task to train on, to choose by and to test on.
_Splits = tuple[Split, Split, Split]


@dataclass(frozen=True)
class Task:
    """One task, ready to train and evaluate on.

    Args:
        name: Its name in the mix.
        settings: The mix's.
        train: Rows to train on.
        validation: Rows to measure and choose by while training; none where the task can spare none.
        test: Rows that are scored by `malora eval`, and read by nothing else.
        overlap: Test rows that training gives away.
        system: System prompt of rows without their own; None leaves it to the chat template.
    """

    name: str
    settings: TaskSettings
    train: Split
    validation: Split
    test: Split
    overlap: Overlap
    system: str | None

    @property
    def splits(self) -> tuple[tuple[str, Split], ...]:
        """Its splits under the names that messages give them."""
        return ("train", self.train), ("validation", self.validation), ("test", self.test)


def load_tasks(mix: MixSettings, encoder: Encoder, *, max_length: int) -> list[Task]:
    """Read, check and encode every task of a mix.

    Rows that are left out, and test rows that training gives away, are counted and warned of.

    Raises:
        DataError: A source is missing or unreadable, a column or a value is missing, or nothing is left of a task; of
            every task that has such a fault, in a line each.
    """
    splits: dict[str, _Splits] = {}
    faults: dict[str, DataError] = {}
    for name, settings in mix.tasks.items():
        try:
            splits[name] = _load_task(name, settings, mix, encoder, max_length)
        except DataError as error:
            # What is wrong with every task alike, such as a full disk, is told of the first.
            located = DataError(error.what, where=f"task '{name}': {error.where}", fix=error.fix)
            faults.setdefault(str(error), located)
    if faults:
        raise _all_of(list(faults.values()))
    found = overlaps({name: (train, test) for name, (train, _, test) in splits.items()})
    tasks = [Task(name, mix.tasks[name], *splits[name], found[name], _system(mix, name)) for name in splits]
    for task in tasks:
        _warn(task, mix)
        same = one_answer(task.train)
        for line in (*([same] if same else []), *out_of_reach(task.settings, task.test, encoder)):
            warnings.warn(f"task '{task.name}': {line}", stacklevel=2)
    return tasks


def _system(mix: MixSettings, name: str) -> str | None:
    """The system prompt of a task."""
    own = mix.tasks[name].system
    return own if own is not None else mix.system


def _all_of(faults: list[DataError]) -> DataError:
    if len(faults) == 1:
        return faults[0]
    lines = [str(fault) for fault in faults[:_FAULTS]]
    more = [f"and {len(faults) - _FAULTS:,} more tasks with a fault in their data"] if len(faults) > _FAULTS else []
    return DataError("\n".join(lines + more))


def _load_task(name: str, settings: TaskSettings, mix: MixSettings, encoder: Encoder, max_length: int) -> _Splits:
    """The rows to train on, to choose by and to test on."""
    rows = _rows(name, settings.train, "train", settings.bad_rows)
    if settings.test is None:
        rows, held = hold_out(rows, settings.holdout, mix.seed)
        tested = settings.train
    else:
        held, tested = _rows(name, settings.test, "test", settings.bad_rows), settings.test
    system = _system(mix, name)

    def encode(
        rows: Rows, source: SourceSettings, policy: LengthPolicy, bad_rows: str, *, once: bool, scored: bool
    ) -> Split:
        metric = settings.metric
        form = source.format or settings.format
        columns = settings.columns if source.columns is None else source.columns
        if settings.supervise == "last" and not FORMATS[form].keys:
            raise DataError(f"format '{form}' has one answer a row", where=source.path, fix="Leave supervise out.")
        reader = RowReader(
            form,
            FORMATS[form],
            columns,
            rows.columns,
            rows.source,
            settings.speakers,
            needs=metric.needs,
            wants=metric.wants,
            scored=scored,
        )
        rows.check(reader.used, reader.needed)
        last = settings.supervise == "last"
        references = "first" if once else settings.references
        encoding = Encoding(reader, encoder, system, max_length, policy, bad_rows, last, once, references)
        return replace(encoding.split(rows), seed=(mix.seed, zlib.crc32(name.encode())))

    # A question that was cut is another question, and pieces of one row would be scored as rows.
    whole: LengthPolicy = "error" if settings.too_long == "error" else "drop"
    train = encode(rows, settings.train, settings.too_long, settings.bad_rows, once=False, scored=False)
    test = encode(held, tested, whole, settings.bad_rows, once=True, scored=True)
    validation = train.none()
    if settings.validation is not None:
        own = _rows(name, settings.validation, "validation", settings.bad_rows)
        validation = encode(own, settings.validation, whole, settings.bad_rows, once=True, scored=True)
    elif mix.validation is not None:
        cut_at = None if settings.too_long == whole else max_length
        train = replace(train, aside=kept_back(train, mix.validation, seed=mix.seed, cut_at=cut_at))
        if len(train.aside):
            chosen = np.unique(train.encoded[train.aside]["row"])
            some = replace(rows.select(chosen), unused=())  # which are told of once
            # What was good enough to be trained on may yet be nothing that can be scored.
            spared = partial(encode, some, settings.train, whole, "drop", once=True)
            try:
                validation = spared(scored=True)
            except DataError:  # training rows need not have what the metric wants of a row beside its answer
                validation = spared(scored=False)
    return train.capped(settings.max_rows), validation, test


def _rows(name: str, source: SourceSettings, split: str, bad_rows: str) -> Rows:
    rows = kept(load_rows(source, split=split), bad_rows)
    if source.where is not None and not rows.unused:
        warnings.warn(f"task '{name}': {source.path}: `{source.where}` holds for every row", stacklevel=3)
    return rows


def _warn(task: Task, mix: MixSettings) -> None:
    for split, rows in task.splits:
        told = [("are left out:", noted) for noted in rows.left_out] + [("have", noted) for noted in rows.remarks]
        for what, noted in told:
            samples = ", ".join(str(number) for number in noted.samples)
            warnings.warn(
                f"task '{task.name}': {noted.rows:,} {split} rows {what} {noted.reason} (row {samples})", stacklevel=3
            )
    if mix.validation is not None and not len(task.validation):
        warnings.warn(
            f"task '{task.name}': of its {len(task.train):,} train rows none can be spared for validation, so its loss "
            "is not measured while training (`validation: FILE` of the task names other rows)",
            stacklevel=3,
        )
    if task.overlap.exact:
        warnings.warn(
            f"task '{task.name}': {task.overlap.exact:,} of {len(task.test):,} test rows are also training rows; "
            f"its score is too good by what was memorised{_KEPT_TOGETHER if task.settings.test is None else ''}",
            stacklevel=3,
        )
    if task.overlap.runs > task.overlap.exact:
        warnings.warn(
            f"task '{task.name}': {task.overlap.runs:,} of {len(task.test):,} test rows share {RUN} words in a row "
            f"with a training row",
            stacklevel=3,
        )


def in_lots(split: Split, task: int, *, limit: int | None, size: int) -> Iterator[list[TrainExample]]:
    """At most ``limit`` rows of a split in lots of ``size``, as examples of task number ``task``."""
    rows = split.sample(limit)
    for start in range(0, len(rows), size):
        yield split.examples(rows[start : start + size], task)
