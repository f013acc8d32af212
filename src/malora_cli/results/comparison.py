"""``NAME.compare/comparison.json``: what every method of a comparison reached, and what may be concluded from it.

Losses are nats a token of test rows, means over tasks that count the same each. Effects are a method's value less the
baseline's, paired by seed and by row. How verdicts are reached: `results.verdicts` and ``docs/metrics.md``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field

from malora_cli.results.evaluation import ALPHA
from malora_cli.results.files import damaged, read_json, write_json, write_text
from malora_cli.results.record import Record

Endpoint = Literal["loss", "score"]


class Verdict(StrEnum):
    """What a comparison says of a method against the baseline, or of it on one task."""

    BETTER = "better"
    WORSE = "worse"
    EQUAL = "equal"  # within the margin
    OPEN = "open"  # cannot be told apart
    NONE = "none"  # one seed speaks of its own runs only

    @property
    def sign(self) -> str:
        """In a table."""
        return {"better": "+", "worse": "-", "equal": "=", "open": "?", "none": ""}[self.value]


class Effect(Record):
    """How a method differs from the baseline, in the units of the endpoint."""

    value: float = Field(description="mean over tasks and seeds, method less baseline")
    by_seed: list[float] = Field(description="the same of each seed")
    rows_low: float | None = Field(description="lower end of the 95% interval over other rows: these runs")
    rows_high: float | None
    seeds_low: float | None = Field(description="lower end of that over other seeds: new runs; None of one seed")
    seeds_high: float | None
    p: float = Field(description="probability of one as large where there is none, by rows or by seeds, the larger")
    p_holm: float | None = Field(default=None, description="corrected for the number of such effects")
    p_equal: float | None = Field(default=None, description="of one as small where the margin is exceeded")
    detectable: float | None = Field(default=None, description="smallest true difference found 80 times in 100")
    verdict: Verdict = Verdict.NONE

    @property
    def told_apart(self) -> bool:
        """Whether it is more than chance, among all effects of its kind."""
        return (self.p if self.p_holm is None else self.p_holm) < ALPHA

    @property
    def half(self) -> float | None:
        """Half-width of the wider of its two intervals, by its farther end."""
        ends = [(self.rows_low, self.rows_high), (self.seeds_low, self.seeds_high)]
        reach = [max(self.value - low, high - self.value) for low, high in ends if low is not None and high is not None]
        return max(reach, default=None)


class MethodRun(Record):
    """One run that a comparison reports."""

    seed: int
    run: str = Field(description="name of its folder")
    losses: dict[str, float] = Field(description="nats a token, by task")
    scores: dict[str, float] = Field(description="by task")
    seconds_per_step: float | None = None
    train_seconds: float = 0.0
    peak_bytes: int | None = Field(default=None, description="most memory of the GPU; None on a CPU")


class Trial(Record):
    """One run of the tuning: a learning rate tried on validation rows, with a seed that is not reported."""

    method: str
    learning_rate: float
    run: str
    loss: float | None = Field(description="nats a token of validation rows, mean over tasks; None: it failed")
    why: str | None = Field(default=None, description="what became of it where there is no loss")
    diverged: bool = Field(default=False, description="whether its loss was NaN or infinite in the end")
    seconds: float = 0.0


class Tuned(Record):
    """The learning rate of one method."""

    learning_rate: float
    bracketed: bool | None = Field(description="whether it lies inside the grid; None: it was not tuned")


class Failure(Record):
    """A run that came to nothing, and why; the others went on."""

    method: str
    seed: int
    run: str
    why: str


class MethodResult(Record):
    """One method of a comparison."""

    method: str
    parameters: int
    tuned: Tuned
    runs: list[MethodRun]
    value: float | None = Field(description="the endpoint, mean over tasks and seeds; None without runs")
    low: float | None = Field(default=None, description="lower end of its 95% interval, the wider of rows and seeds")
    high: float | None = None
    interquartile: float | None = Field(
        default=None, description="mean of the middle half of the endpoint's values, one a task and seed"
    )
    interquartile_half: float | None = Field(
        default=None, description="half of its 95% interval over seeds; None of one seed"
    )
    effect: Effect | None = Field(default=None, description="against the baseline; None for that itself")
    tasks: dict[str, Effect] = Field(default={}, description="the same of every task, for the endpoint")
    rank: float | None = Field(default=None, description="mean over tasks and seeds, 1 is best; ties share")
    alone: dict[str, Effect] = Field(
        default={},
        description="by task: its loss less that of the baseline trained on that task alone, always of losses",
    )
    delta_m: float | None = Field(
        default=None, description="mean gain over single-task training, in percent of its loss"
    )
    added: bool = Field(default=False, description="whether it came after the plan")

    @property
    def is_complete(self) -> bool:
        """Whether it has been compared with the baseline or is that itself."""
        return self.value is not None

    def tally(self) -> tuple[int, int, int]:
        """Tasks on which it is better, neither, and worse."""
        found = [effect.verdict for effect in self.tasks.values()]
        better, worse = found.count(Verdict.BETTER), found.count(Verdict.WORSE)
        return better, len(found) - better - worse, worse

    @property
    def seesaw(self) -> list[str]:
        """Tasks that are worse than alone: what others gained was taken from them."""
        return [task for task, effect in self.alone.items() if effect.verdict is Verdict.WORSE]

    def mean(self, figure: Literal["losses", "scores"], task: str | None = None) -> float | None:
        """Mean over seeds of a task's loss or score, or over its tasks."""
        found = [
            value for run in self.runs for name, value in getattr(run, figure).items() if task is None or name == task
        ]
        return sum(found) / len(found) if found else None

    @property
    def peak_bytes(self) -> int | None:
        """Most memory of the GPU that one of its runs took."""
        return max((run.peak_bytes for run in self.runs if run.peak_bytes is not None), default=None)

    @property
    def seconds_per_step(self) -> float | None:
        """Median over its runs' medians."""
        found = sorted(run.seconds_per_step for run in self.runs if run.seconds_per_step is not None)
        return found[len(found) // 2] if found else None


class Comparison(Record):
    """The whole comparison."""

    version: Literal[1] = 1
    name: str
    created: str = Field(description="UTC, ISO 8601")
    plan_sha256: str | None = Field(description="of plan.json, which was written before the first run")
    command: list[str] = Field(default=[], description="what asks for the same comparison")
    endpoint: Endpoint
    margin: float = Field(description="differences within it count as none")
    baseline: str
    seeds: list[int]
    tuning_seed: int | None = Field(default=None, description="seed of the trials, which is not reported")
    steps: int
    rows: dict[str, int] = Field(description="test rows by task")
    domains: dict[str, str] = Field(description="domain of every task")
    methods: list[MethodResult] = Field(description="best first, by the endpoint")
    alone: dict[str, list[float]] = Field(
        default={}, description="of every task the loss of the baseline trained on it alone, one a seed"
    )
    trials: list[Trial] = Field(default=[])
    failures: list[Failure] = Field(default=[])
    notes: list[str] = Field(default=[], description="what is to be known before anything is concluded")
    sentences: list[str] = Field(description="what may be concluded")

    @property
    def unit(self) -> str:
        """What the endpoint is measured in."""
        return "nats a token" if self.endpoint == "loss" else "score"

    def of(self, method: str) -> MethodResult:
        """The result of one method."""
        return next(result for result in self.methods if result.method == method)

    def save(self, folder: Path) -> None:
        """Write it as ``comparison.json`` and every figure of it as ``comparison.csv``."""
        write_json(folder / "comparison.json", self.model_dump(mode="json"))
        write_text(folder / "comparison.csv", self.csv())

    @classmethod
    def load(cls, folder: Path) -> Comparison:
        """Read a comparison.

        Raises:
            RunError: It is not there or damaged.
        """
        path = folder / "comparison.json"
        try:
            return cls.model_validate(read_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise damaged(path, "comparison", error, fix="Run the same `malora compare` again.") from error

    def csv(self) -> str:
        """One line a figure: method, seed, phase, learning rate, task, metric, value, low, high, rows, run."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(self.figures())
        return file.getvalue()

    def figures(self) -> Iterator[tuple[object, ...]]:
        """The lines of the CSV file, without its head."""
        for trial in self.trials:
            told = (trial.method, self.tuning_seed, "tuning", trial.learning_rate, "", "validation loss")
            yield (*told, trial.loss, "", "", "", trial.run)
        for task, losses in self.alone.items():
            if len(losses) == len(self.seeds):  # else nothing says whose they are
                for seed, loss in zip(self.seeds, losses, strict=True):
                    yield (self.baseline, seed, "single task", "", task, "loss", loss, "", "", self.rows[task], "")
        for it in self.methods:
            rate = it.tuned.learning_rate
            for run in it.runs:
                for metric, found in (("loss", run.losses), ("score", run.scores)):
                    for task, value in found.items():
                        rows = self.rows[task]
                        yield (it.method, run.seed, "report", rate, task, metric, value, "", "", rows, run.run)
            total = sum(self.rows.values())
            yield (it.method, "", "report", rate, "", self.endpoint, it.value, it.low, it.high, total, "")
            if it.interquartile is not None:
                middle, half = it.interquartile, it.interquartile_half
                around = ("", "") if half is None else (middle - half, middle + half)
                metric = f"{self.endpoint}, interquartile mean"
                yield (it.method, "", "report", rate, "", metric, middle, *around, total, "")
            for task, gap in it.alone.items():
                against = "loss less that of the task alone"
                ends = (_plus(gap, -1), _plus(gap, 1))
                yield (it.method, "", "report", rate, task, against, gap.value, *ends, self.rows[task], "")
            effects = {"": it.effect, **it.tasks}
            for task, effect in effects.items():
                if effect is not None:
                    ends = (_plus(effect, -1), _plus(effect, 1))
                    against = f"{self.endpoint} less {self.baseline}'s"
                    rows = self.rows.get(task, total)
                    yield (it.method, "", "report", rate, task, against, effect.value, *ends, rows, "")


def _plus(effect: Effect, sign: int) -> float | None:
    return None if effect.half is None else effect.value + sign * effect.half


#: Heads of ``comparison.csv``.
COLUMNS = ("method", "seed", "phase", "rate", "task", "metric", "value", "low", "high", "rows", "run")
