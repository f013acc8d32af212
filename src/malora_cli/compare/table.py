"""Runs side by side: one row a measure, one column a run, the best of each row marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote

from malora_cli.errors import RunError
from malora_cli.results import EvalResult, RunRecord
from malora_cli.results.evaluation import Compared


@dataclass(frozen=True)
class Row:
    """One measure of every run.

    Args:
        section: What it belongs to.
        name: What is measured, with its unit.
        values: One for each run; None where it was not measured.
        higher_is_better: None where there is no better.
        form: Format of a value.
        ends: The 95% interval of each value, where that is known.
    """

    section: str
    name: str
    values: list[float | None]
    higher_is_better: bool | None
    form: str
    ends: Sequence[tuple[float, float] | None] = ()

    def shown(self) -> list[str]:
        """The values as text."""
        return ["-" if value is None else f"{value:{self.form}}" for value in self.values]

    def best(self) -> set[int]:
        """Numbers of the runs that are best as far as is shown; empty when there is nothing to tell apart.

        Where intervals are known, that of a best run overlaps with none of the others'.
        """
        known = [value for value in self.values if value is not None]
        shown = self.shown()
        if self.higher_is_better is None or len(set(shown) - {"-"}) < 2:
            return set()
        best = max(known) if self.higher_is_better else min(known)
        found = {index for index, text in enumerate(shown) if text == f"{best:{self.form}}"}
        return set() if self._overlap(found) else found

    def _overlap(self, best: set[int]) -> bool:
        """Whether an interval of these runs overlaps with one of another run."""
        inside = [ends for index, ends in enumerate(self.ends) if ends is not None and index in best]
        outside = [ends for index, ends in enumerate(self.ends) if ends is not None and index not in best]
        return any(low <= other_high and other_low <= high for low, high in inside for other_low, other_high in outside)


@dataclass(frozen=True)
class Comparison:
    """The table of a comparison."""

    runs: list[str]
    rows: list[Row]


def compare(evaluated: Sequence[tuple[RunRecord, EvalResult]]) -> Comparison:
    """Put runs and their evaluations side by side.

    Raises:
        RunError: They were evaluated on different rows.
    """
    records, results = [record for record, _ in evaluated], [result for _, result in evaluated]
    _check_same_rows(records, results)
    rows = [
        Row("cost", "trainable parameters", [float(r.manifest.trainable_parameters) for r in records], None, ",.0f"),
        Row("cost", "seconds a step", [r.metrics.pace() for r in records], False, ".2f"),
    ]

    first = results[0]
    for task in first.tasks:
        losses = [result.tasks[task].model.loss for result in results]
        rows.append(Row("held-out loss, nats a token", task, losses, False, ".3f"))
    averages = [result.domains() for result in results]
    rows += [_scores("score", task, [result.tasks[task] for result in results]) for task in first.tasks]
    rows += [_scores("score of a domain", name, [found[name] for found in averages]) for name in averages[0]]
    rows.append(_scores("score of a domain", "all domains", [result.overall() for result in results]))
    return Comparison([record.name for record in records], rows)


def _scores(section: str, name: str, evaluated: Sequence[Compared]) -> Row:
    found = [compared.model for compared in evaluated]
    ends = [None if one.low is None or one.high is None else (one.low, one.high) for one in found]
    return Row(section, name, [one.score for one in found], True, ".3f", ends)


def newest_evaluation(record: RunRecord) -> EvalResult:
    """The newest evaluation of a finished run.

    Raises:
        RunError: It is not finished or not evaluated, or its adapter is not what was written.
    """
    record.require_finished()
    if not record.is_light:
        record.adapter_at(None)
    found = record.evaluations_of_the_end()
    if not found:
        raise RunError(
            "this run has not been evaluated",
            where=str(record.path),
            fix=f"Run: malora eval {quote(str(record.path))}",
        )
    return found[-1]


def _check_same_rows(records: Sequence[RunRecord], results: Sequence[EvalResult]) -> None:
    first = records[0].manifest.test_data
    for record, result in zip(records, results, strict=True):
        hashes = record.manifest.test_data
        known = result.tasks.keys() <= hashes.keys() & first.keys()
        same = (
            known
            and _rows(result) == _rows(results[0])
            and all(hashes[task].sha256 == first[task].sha256 for task in result.tasks)
        )
        if not same:
            raise RunError(
                f"was evaluated on other rows than {records[0].name}",
                where=str(record.path),
                fix="Evaluate both with the same tasks and limit: malora eval RUN --limit N",
            )


def _rows(result: EvalResult) -> dict[str, tuple[int, str | None]]:
    return {name: (task.rows, task.sample) for name, task in result.tasks.items()}
