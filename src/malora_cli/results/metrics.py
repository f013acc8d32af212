"""``metrics.jsonl``: one line for every log step and every evaluation of a run, in order of time.

Losses are in nats. A task's ``nats`` is a sum over its supervised tokens, so that sums of tasks and of log steps
stay exact; divide by ``tokens`` for the loss a token.
"""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Iterable, Iterator, Sequence
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from malora_cli.results.files import damaged, write_text
from malora_cli.results.record import Record

#: Shares of the (token, slot) assignments by layer group: experts ranked within each router, busiest first, mean over
#: routers; dimensionless, each list sums to 1.
ExpertShare = dict[str, list[float]]


#: Mean entropy of a router's softmax over its largest value, 0 (certain) to 1 (uniform), by layer group.
GateEntropy = dict[str, float]


T = TypeVar("T")


class TaskLoss(Record):
    """What one task contributed: summed loss, supervised tokens and examples.

    ``stderr_nats`` is the standard error of the loss a token over examples, where it was measured (evaluations).
    """

    nats: float
    tokens: int
    examples: int
    stderr_nats: float | None = None

    @classmethod
    def of_examples(cls, examples: Sequence[tuple[float, int]]) -> TaskLoss:
        """Sum up examples, each given as (nats, tokens).

        The loss a token is a ratio of two sums over examples; its standard error is that of a ratio estimator.
        """
        nats, tokens = sum(n for n, _ in examples), sum(t for _, t in examples)
        loss, count = nats / tokens, len(examples)
        spread = sum((n - loss * t) ** 2 for n, t in examples)
        stderr = sqrt(spread * count / (count - 1)) / tokens if count > 1 else None
        return cls(nats=nats, tokens=tokens, examples=count, stderr_nats=stderr)

    @property
    def loss(self) -> float | None:
        """Nats per supervised token; None where no token was seen."""
        return self.nats / self.tokens if self.tokens else None


class TrainEvent(Record):
    """One log step: everything trained on since the one before it."""

    kind: Literal["train"] = "train"
    step: int
    seconds: float = Field(description="since training began, pauses between resumed sessions left out")
    tasks: dict[str, TaskLoss]
    learning_rate: float
    grad_norm: float | None = None
    tokens_per_second: float = Field(description="all tokens fed to the model, prompts included")
    seconds_per_step: float | None = Field(default=None, description="evaluations and checkpoints left out")
    balance_loss: float | None = Field(default=None, description="mean over routers, 1.0 when uniform")
    expert_share: ExpertShare | None = None
    task_share: dict[str, float] | None = Field(
        default=None, description="of the rows from here on, where shares change; 0 for a task that was stopped"
    )
    loss_weight: dict[str, float] | None = Field(default=None, description="of every task, where it is learned")


class EvalEvent(Record):
    """One pass over the validation rows of every task, during training. Step 0 is the base model.

    Runs whose manifest names no validation rows are of an older version, and measured test rows.
    """

    kind: Literal["eval"] = "eval"
    step: int
    seconds: float
    tasks: dict[str, TaskLoss]
    expert_load: dict[str, ExpertShare] | None = Field(default=None, description="by task, then layer group")
    gate_entropy: dict[str, GateEntropy] | None = Field(default=None, description="by task, then layer group")


class GradientConflict(Record):
    """The gradients of all tasks compared, for one group of parameters; tasks in the order of the event's.

    ``magnitude`` is ``2 |a| |b| / (|a|^2 + |b|^2)``, 1 for equal norms.
    """

    cosine: list[list[float]]
    magnitude: list[list[float]]
    norm: list[float]


class ConflictEvent(Record):
    """How far the tasks' gradients pulled apart after a step."""

    kind: Literal["conflict"] = "conflict"
    step: int
    cost_seconds: float = Field(description="that measuring took")
    rows: int = Field(description="training rows of each task that the gradients are of, at most")
    tasks: list[str]
    groups: dict[str, GradientConflict] = Field(description='by group of parameters, and "all" of them')

    @model_validator(mode="after")
    def _of_these_tasks(self) -> ConflictEvent:
        square = [len(self.tasks)] * len(self.tasks)
        for name, group in self.groups.items():
            if [*map(len, group.cosine)] != square or [*map(len, group.magnitude)] != square:
                raise ValueError(f"the comparison of {name} is not one of {len(self.tasks)} tasks")
            if len(group.norm) != len(self.tasks):
                raise ValueError(f"the norms of {name} are not those of {len(self.tasks)} tasks")
        if "all" not in self.groups:
            raise ValueError("the comparison of all parameters is missing")
        return self


Event = TrainEvent | EvalEvent | ConflictEvent
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


class _Pace(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    seconds_per_step: float | None = None


_PACE: TypeAdapter[_Pace] = TypeAdapter(_Pace)


class MetricsLog:
    """The append-only log of one run. Iterating over it reads it anew.

    Args:
        path: The file, usually ``RUN/metrics.jsonl``; it is made with the first event.

    Raises:
        RunError: While it is read: a line of it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Event) -> None:
        """Add one event as one line, on disk when this returns to the caller's file system.

        Raises:
            OSError: It cannot be written, and names the file.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(event.model_dump_json(exclude_none=True) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def __iter__(self) -> Iterator[Event]:
        return self._read(_EVENT)

    def pace(self) -> float | None:
        """Seconds a step, the median over log steps; None where none is known. Nothing else of the log is looked at.

        Evaluations and checkpoints are left out.
        """
        known = (event.seconds_per_step for event in self._read(_PACE))
        paces = array("d", (pace for pace in known if pace is not None))
        return median(paces) if paces else None

    def _read(self, part: TypeAdapter[T]) -> Iterator[T]:
        if not self.path.exists():
            return
        try:
            with self.path.open("rb") as file:
                yield from self._parsed(file, part)
        except OSError as error:
            raise damaged(self.path, "log", error) from error

    def _parsed(self, lines: Iterable[bytes], part: TypeAdapter[T]) -> Iterator[T]:
        numbered = enumerate(lines, start=1)
        for number, line in numbered:
            # A killed run may leave the start of a line; everything before it stands.
            if not line.endswith(b"\n"):
                return
            try:
                event = part.validate_json(line)
            except ValueError as error:
                if any(_is_event(later) for _, later in numbered):
                    raise damaged(self.path, f"log's line {number}", error, fix="Remove that line.") from error
                # Such as the zeros that a machine leaves which loses its power.
                warnings.warn(f"{self.path}: the end of the log is damaged, from line {number} on", stacklevel=3)
                return
            yield event

    def train(self) -> list[TrainEvent]:
        """All log steps, oldest first."""
        return [event for event in self if isinstance(event, TrainEvent)]

    def evals(self) -> list[EvalEvent]:
        """All evaluations, oldest first."""
        return [event for event in self if isinstance(event, EvalEvent)]

    def rewind(self, step: int) -> None:
        """Drop what was logged after ``step``: a run resumed there logs it again."""
        kept = [event for event in self if event.step <= step]
        write_text(self.path, "".join(event.model_dump_json(exclude_none=True) + "\n" for event in kept))


def _is_event(line: bytes) -> bool:
    try:
        _EVENT.validate_json(line)
    except ValueError:
        return False
    return True
