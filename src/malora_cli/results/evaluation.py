"""``eval/*.json``: scores of every task, and means over domains, of a model and of what it is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from pydantic import AliasChoices, Field

from malora_cli.results.files import damaged, read_json, write_json
from malora_cli.results.metrics import ExpertShare, GateEntropy
from malora_cli.results.record import Record

#: From this share of answers that cannot be read a score says more about their form than about what they say.
MUCH_UNREAD = 0.1
#: The probability below which a difference is taken for one.
ALPHA = 0.05
_ALL = "all domains"


class Scores(Record):
    """What one model reached on one task, or in the mean over several."""

    score: float = Field(description="the task's metric, 0 to 1, higher is better")
    low: float | None = Field(default=None, description="lower end of the 95% interval of the score")
    high: float | None = Field(default=None, description="upper end")
    loss: float | None = Field(default=None, description="nats per supervised token on the same rows")
    bits_per_byte: float | None = Field(default=None, description="of the right answers, whatever the tokenizer")
    unread: float | None = Field(default=None, description="share of answers from which nothing could be read")
    outcomes: dict[str, int] = Field(default={}, description="answers by what became of them, of generated code")

    @property
    def much_unread(self) -> bool:
        """Whether so many answers could not be read that the score stands for their form."""
        return self.unread is not None and self.unread >= MUCH_UNREAD


class Difference(Record):
    """A model's score less that of another on the same rows, each row with itself."""

    value: float
    low: float | None = Field(default=None, description="lower end of its 95% interval")
    high: float | None = Field(default=None, description="upper end")
    p: float | None = Field(default=None, description="probability of one as large where there is none")
    p_holm: float | None = Field(default=None, description="the same, corrected for the number of tasks")
    wins: int = Field(default=0, description="rows that the model does better")
    ties: int = 0
    losses: int = 0
    detectable: float | None = Field(default=None, description="smallest true difference found 80 times in 100")

    @property
    def told_apart(self) -> bool:
        """Whether it is more than chance, among all tasks that were looked at."""
        p = self.p if self.p_holm is None else self.p_holm
        return p is not None and p < ALPHA

    @property
    def is_worse(self) -> bool:
        """Whether the model is worse, by more than chance."""
        return self.told_apart and self.value < 0


class Compared(Record):
    """A model's scores beside those of what it is compared with, if anything."""

    model: Scores = Field(validation_alias=AliasChoices("model", "adapter"))
    against: Scores | None = Field(default=None, validation_alias=AliasChoices("against", "base"))
    difference: Difference | None = None

    @property
    def gain(self) -> float | None:
        """How much more the model scores."""
        return None if self.against is None else self.model.score - self.against.score


class TaskEval(Compared):
    """One task's test rows."""

    domain: str
    metric: str
    rows: int
    clusters: int | None = Field(default=None, description="groups of rows that are no independent evidence")
    sample: str | None = Field(default=None, description="which rows these are, as a hash; None is all of them")


class EvalResult(Record):
    """One evaluation of a run or a model."""

    run: str = Field(description="name of the run or of the model")
    created: str = Field(description="UTC, ISO 8601")
    step: int = Field(description="optimiser steps the adapter was trained for")
    limit: int | None = Field(description="rows a task at most; None is all of them")
    seconds: float
    against: str | None = Field(default="base", description="what it is compared with: base, a run, a file")
    mix: str | None = Field(default=None, description="where the tasks are from, where they are not the run's own")
    split: str = Field(default="test", description="which rows: test or validation")
    shots: int = Field(default=0, description="solved training rows in front of each prompt of the base")
    sandbox: str | None = Field(default=None, description="what generated code ran in")
    tasks: dict[str, TaskEval]
    averages: dict[str, Compared] = Field(default={}, description="of every domain, and over the domains")
    expert_load: dict[str, ExpertShare] | None = Field(default=None, description="by task, then layer group")
    gate_entropy: dict[str, GateEntropy] | None = Field(default=None, description="by task, then layer group")

    @property
    def of_test_rows(self) -> bool:
        """Whether it is of the test rows of the run's own tasks."""
        return self.mix is None and self.split == "test"

    @property
    def against_base(self) -> bool:
        """Whether it says what an adapter does to its own base model there."""
        return self.against == "base" and self.of_test_rows

    @property
    def against_name(self) -> str | None:
        """What it is compared with, as a heading."""
        shots = f", {self.shots} shot{'s' if self.shots > 1 else ''}" if self.shots and self.against == "base" else ""
        return None if self.against is None else self.against + shots

    @property
    def rows(self) -> int:
        """Rows of all tasks."""
        return sum(task.rows for task in self.tasks.values())

    def members(self) -> dict[str, list[str]]:
        """Names of the tasks of every domain."""
        found: dict[str, list[str]] = {}
        for name, task in self.tasks.items():
            found.setdefault(task.domain, []).append(name)
        return found

    def domains(self) -> dict[str, Compared]:
        """Macro-average of every domain: every task of it counts the same."""
        return {
            domain: self.averages.get(domain) or average([self.tasks[name] for name in names])
            for domain, names in self.members().items()
        }

    def overall(self) -> Compared:
        """Macro-average over domains: every domain counts the same."""
        return self.averages.get(_ALL) or average(list(self.domains().values()))

    def with_averages(self, domains: dict[str, Compared], overall: Compared) -> EvalResult:
        """The same with averages that have intervals."""
        return self.model_copy(update={"averages": {**domains, _ALL: overall}})

    def save(self, path: Path) -> None:
        """Write this evaluation, with its averages spelled out for readers of the file."""
        averages = {**self.domains(), _ALL: self.overall()}
        write_json(path, self.model_copy(update={"averages": averages}).model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> EvalResult:
        """Read an evaluation, also one of an older version.

        Raises:
            RunError: The file is damaged.
        """
        try:
            return cls.model_validate(read_json(path))
        except (OSError, ValueError, TypeError) as error:  # not valid JSON, no object, or not ours
            raise damaged(path, "evaluation", error, fix="Remove it and evaluate again.") from error


def average(members: Sequence[Compared], difference: Difference | None = None) -> Compared:
    """The mean over tasks or domains, each counting the same; without an interval, which takes their rows."""
    others = [member.against for member in members if member.against is not None]
    return Compared(
        model=_mean([member.model for member in members]),
        against=_mean(others) if len(others) == len(members) else None,
        difference=difference,
    )


def _mean(scores: Sequence[Scores]) -> Scores:
    return Scores(
        score=fmean(s.score for s in scores),
        loss=_mean_of(s.loss for s in scores),
        bits_per_byte=_mean_of(s.bits_per_byte for s in scores),
        unread=_mean_of(s.unread for s in scores),
    )


def _mean_of(values: Iterable[float | None]) -> float | None:
    """The mean; None where one is missing."""
    found = list(values)
    known = [value for value in found if value is not None]
    return fmean(known) if len(known) == len(found) else None
