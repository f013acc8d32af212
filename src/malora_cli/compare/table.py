"""Runs side by side: one row a measure, one column a run, the best of each row marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from malora_cli.errors import RunError
from malora_cli.results import EvalResult, RunRecord


@dataclass(frozen=True)
class Row:
    """One measure of every run.

    Args:
        section: What it belongs to.
        name: What is measured, with its unit.
        values: One for each run; None where it was not measured.
        higher_is_better: None where there is no better.
        form: Format of a value.
    """

    section: str
    name: str
    values: list[float | None]
    higher_is_better: bool | None
    form: str

    def best(self) -> set[int]:
        """Numbers of the runs that are best; empty when there is nothing to tell apart."""
        known = [value for value in self.values if value is not None]
        if self.higher_is_better is None or len(set(known)) < 2:
            return set()
        best = max(known) if self.higher_is_better else min(known)
        return {index for index, value in enumerate(self.values) if value == best}


@dataclass(frozen=True)
class Comparison:
    """The table of a comparison."""

    runs: list[str]
    rows: list[Row]

    def as_json(self) -> dict[str, Any]:
        """The table as plain data."""
        return {
            "runs": self.runs,
            "rows": [{"section": r.section, "name": r.name, "values": r.values} for r in self.rows],
        }


def compare(records: Sequence[RunRecord]) -> Comparison:
    """Put finished and evaluated runs side by side.

    Raises:
        RunError: One is not finished or not evaluated, or they were evaluated on different rows.
    """
    for record in records:
        record.require_finished()
    results = [_newest(record) for record in records]
    _check_same_rows(records, results)
    rows = [
        Row("cost", "trainable parameters", [float(r.manifest.trainable_parameters) for r in records], None, ",.0f"),
        Row("cost", "seconds a step", [_seconds_a_step(r) for r in records], False, ".2f"),
    ]

    def add(section: str, name: str, better: bool, form: str, value: Callable[[EvalResult], float]) -> None:
        rows.append(Row(section, name, [value(result) for result in results], better, form))

    first = results[0]
    for task in first.tasks:
        add("held-out loss, nats a token", task, False, ".3f", lambda r, t=task: r.tasks[t].adapter.loss)  # type: ignore[misc]
    for task in first.tasks:
        add("score", task, True, ".3f", lambda r, t=task: r.tasks[t].adapter.score)  # type: ignore[misc]
    for domain in first.domains():
        add("score of a domain", domain, True, ".3f", lambda r, d=domain: r.domains()[d][1].score)  # type: ignore[misc]
    add("score of a domain", "all domains", True, ".3f", lambda r: r.overall()[1].score)
    return Comparison([record.name for record in records], rows)


def _newest(record: RunRecord) -> EvalResult:
    found = record.evaluations()
    if not found:
        raise RunError(
            "this run has not been evaluated", where=str(record.path), fix=f"Do so: malora eval {record.path}"
        )
    return found[-1]


def _check_same_rows(records: Sequence[RunRecord], results: Sequence[EvalResult]) -> None:
    first = records[0].manifest.test_data
    for record, result in zip(records, results, strict=True):
        hashes = record.manifest.test_data
        same = {task: result.tasks[task].rows for task in result.tasks} == {
            task: results[0].tasks[task].rows for task in results[0].tasks
        } and all(hashes[task].sha256 == first[task].sha256 for task in result.tasks)
        if not same:
            raise RunError(
                f"was evaluated on other rows than {records[0].name}",
                where=str(record.path),
                fix="Evaluate both with the same tasks and limit: malora eval RUN --limit N",
            )


def _seconds_a_step(record: RunRecord) -> float | None:
    """Median over log steps, evaluations and checkpoints in between left out."""
    paces = [event.seconds_per_step for event in record.metrics.train() if event.seconds_per_step is not None]
    return median(paces) if paces else None
