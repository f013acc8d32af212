"""The tasks of a mix, loaded and encoded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from malora_cli.characters import plural
from malora_cli.data.batch import TrainExample
from malora_cli.data.encoding import Encoder
from malora_cli.data.overlap import RUN, Overlap, overlaps
from malora_cli.data.reach import one_answer, out_of_reach
from malora_cli.data.splits import Split
from malora_cli.data.task_rows import Splits, TaskRows
from malora_cli.errors import DataError
from malora_cli.recipe import MixSettings, TaskSettings

_KEPT_TOGETHER = " (`holdout: {share: 0.05, group: COLUMN}` keeps rows of one prompt on one side)"
#: Faults that are shown at once.
_FAULTS = 20


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
    splits: dict[str, Splits] = {}
    faults: dict[str, DataError] = {}
    readers = {name: TaskRows(name, settings, mix, encoder, max_length) for name, settings in mix.tasks.items()}
    for name, rows in readers.items():
        try:
            splits[name] = rows.splits()
        except DataError as error:
            # What is wrong with every task alike, such as a full disk, is told of the first.
            located = DataError(error.what, where=f"task '{name}': {error.where}", fix=error.fix)
            faults.setdefault(str(error), located)
    if faults:
        raise _all_of(list(faults.values()))
    found = overlaps({name: (train, test) for name, (train, _, test) in splits.items()})
    tasks = [Task(name, mix.tasks[name], *splits[name], found[name], readers[name].system) for name in splits]
    for task in tasks:
        _warn(task, mix)
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


def _warn(task: Task, mix: MixSettings) -> None:
    for split, rows in task.splits:
        told = [(("is left out:", "are left out:"), noted) for noted in rows.left_out]
        told += [(("has", "have"), noted) for noted in rows.remarks]
        for (does, do), noted in told:
            samples = ", ".join(str(number) for number in noted.samples)
            which = f"{plural(noted.rows, f'{split} row')} {does if noted.rows == 1 else do}"
            warnings.warn(f"task '{task.name}': {which} {noted.reason} (row {samples})", stacklevel=3)
    if mix.validation is not None and not len(task.validation):
        warnings.warn(
            f"task '{task.name}': none of its {len(task.train):,} train rows can be spared for validation, so its loss "
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
