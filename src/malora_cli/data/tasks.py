"""The tasks of a mix, loaded and encoded."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
from malora_cli.errors import DataError
from malora_cli.recipe import LengthPolicy, MixSettings, SourceSettings, TaskSettings

_KEPT_TOGETHER = " (`holdout: {share: 0.05, group: COLUMN}` keeps rows of one prompt on one side)"
#: Faults that are shown at once.
_FAULTS = 20


@dataclass(frozen=True)
class Task:
    """One task, ready to train and evaluate on."""

    name: str
    settings: TaskSettings
    train: Split
    test: Split
    overlap: Overlap


def load_tasks(mix: MixSettings, encoder: Encoder, *, max_length: int) -> list[Task]:
    """Read, check and encode every task of a mix.

    Rows that are left out, and test rows that training gives away, are counted and warned of.

    Raises:
        DataError: A source is missing or unreadable, a column or a value is missing, or nothing is left of a task; of
            every task that has such a fault, in a line each.
    """
    splits: dict[str, tuple[Split, Split]] = {}
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
    found = overlaps(splits)
    tasks = [Task(name, mix.tasks[name], train, test, found[name]) for name, (train, test) in splits.items()]
    for task in tasks:
        _warn(task)
        same = one_answer(task.train)
        for line in (*([same] if same else []), *out_of_reach(task.settings, task.test, encoder)):
            warnings.warn(f"task '{task.name}': {line}", stacklevel=2)
    return tasks


def _all_of(faults: list[DataError]) -> DataError:
    if len(faults) == 1:
        return faults[0]
    lines = [str(fault) for fault in faults[:_FAULTS]]
    more = [f"and {len(faults) - _FAULTS:,} more tasks with a fault in their data"] if len(faults) > _FAULTS else []
    return DataError("\n".join(lines + more))


def _load_task(
    name: str, settings: TaskSettings, mix: MixSettings, encoder: Encoder, max_length: int
) -> tuple[Split, Split]:
    rows = _rows(name, settings.train, "train", settings.bad_rows)
    if settings.test is None:
        rows, held = hold_out(rows, settings.holdout, mix.seed)
        tested = settings.train
    else:
        held, tested = _rows(name, settings.test, "test", settings.bad_rows), settings.test
    system = settings.system if settings.system is not None else mix.system

    def encode(rows: Rows, source: SourceSettings, policy: LengthPolicy, *, once: bool) -> Split:
        needs = settings.metric.needs
        form = source.format or settings.format
        columns = settings.columns if source.columns is None else source.columns
        if settings.supervise == "last" and not FORMATS[form].keys:
            raise DataError(f"format '{form}' has one answer a row", where=source.path, fix="Leave supervise out.")
        reader = RowReader(
            form, FORMATS[form], columns, rows.columns, rows.source, settings.speakers, needs, scored=once
        )
        rows.check(reader.used, reader.needed)
        last = settings.supervise == "last"
        references = "first" if once else settings.references
        encoding = Encoding(reader, encoder, system, max_length, policy, settings.bad_rows, last, once, references)
        return replace(encoding.split(rows), seed=(mix.seed, zlib.crc32(name.encode())))

    train = encode(rows, settings.train, settings.too_long, once=False)
    # A question that was cut is another question, and pieces of one row would be scored as rows.
    test = encode(held, tested, "error" if settings.too_long == "error" else "drop", once=True)
    return train.capped(settings.max_rows), test


def _rows(name: str, source: SourceSettings, split: str, bad_rows: str) -> Rows:
    rows = kept(load_rows(source, split=split), bad_rows)
    if source.where is not None and not rows.unused:
        warnings.warn(f"task '{name}': {source.path}: `{source.where}` holds for every row", stacklevel=3)
    return rows


def _warn(task: Task) -> None:
    for split, rows in (("train", task.train), ("test", task.test)):
        told = [("are left out:", noted) for noted in rows.left_out] + [("have", noted) for noted in rows.remarks]
        for what, noted in told:
            samples = ", ".join(str(number) for number in noted.samples)
            warnings.warn(
                f"task '{task.name}': {noted.rows:,} {split} rows {what} {noted.reason} (row {samples})", stacklevel=3
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
