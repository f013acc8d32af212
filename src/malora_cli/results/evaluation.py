"""``eval/*.json``: scores of every task and macro-averages per domain, base model beside adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean

from pydantic import Field

from malora_cli.results.files import damaged, read_json, write_json
from malora_cli.results.metrics import ExpertShare, GateEntropy
from malora_cli.results.record import Record


class Scores(Record):
    """What one model reached on one task."""

    score: float = Field(description="the task's metric, 0 to 1, higher is better")
    loss: float = Field(description="nats per supervised token on the same rows")


class TaskEval(Record):
    """One task's held-out rows under the base model and under the adapter."""

    domain: str
    metric: str
    rows: int
    sample: str | None = Field(default=None, description="which rows these are, as a hash; None is all of them")
    base: Scores
    adapter: Scores


class EvalResult(Record):
    """One evaluation of one run."""

    run: str
    created: str = Field(description="UTC, ISO 8601")
    step: int = Field(description="optimiser steps the adapter was trained for")
    limit: int | None = Field(description="rows a task at most; None is all of them")
    seconds: float
    tasks: dict[str, TaskEval]
    expert_load: dict[str, ExpertShare] | None = Field(default=None, description="by task, then layer group")
    gate_entropy: dict[str, GateEntropy] | None = Field(default=None, description="by task, then layer group")

    def domains(self) -> dict[str, tuple[Scores, Scores]]:
        """Macro-average (base, adapter) of every domain: every task of it counts the same."""
        members: dict[str, list[TaskEval]] = {}
        for task in self.tasks.values():
            members.setdefault(task.domain, []).append(task)
        return {name: _average(tasks) for name, tasks in members.items()}

    def overall(self) -> tuple[Scores, Scores]:
        """Macro-average (base, adapter) over domains: every domain counts the same."""
        bases, adapters = zip(*self.domains().values(), strict=True)
        return _mean(bases), _mean(adapters)

    def save(self, path: Path) -> None:
        """Write this evaluation, with its averages spelled out for readers of the file."""
        averages: Mapping[str, tuple[Scores, Scores]] = {**self.domains(), "all domains": self.overall()}
        spelled = {name: {"base": b.model_dump(), "adapter": a.model_dump()} for name, (b, a) in averages.items()}
        write_json(path, {**self.model_dump(), "averages": spelled})

    @classmethod
    def load(cls, path: Path) -> EvalResult:
        """Read an evaluation; the averages are derived, so those in the file are not.

        Raises:
            RunError: The file is damaged.
        """
        try:
            record = read_json(path)
            record.pop("averages", None)
            return cls.model_validate(record)
        except (OSError, ValueError, AttributeError, TypeError) as error:  # no JSON, no object, or not ours
            raise damaged(path, "evaluation", error, fix="Remove it and evaluate again.") from error


def _mean(scores: Iterable[Scores]) -> Scores:
    listed = list(scores)
    return Scores(score=fmean(s.score for s in listed), loss=fmean(s.loss for s in listed))


def _average(tasks: Iterable[TaskEval]) -> tuple[Scores, Scores]:
    listed = list(tasks)
    return _mean(t.base for t in listed), _mean(t.adapter for t in listed)
