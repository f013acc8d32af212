"""A run's log read once and kept small, however long it is: what a report shows of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import add
from statistics import fmean
from typing import Generic, TypeVar

from malora_cli.results.metrics import ConflictEvent, EvalEvent, Event, ExpertShare, GateEntropy, TrainEvent
from malora_cli.results.seesaw import Lows

T = TypeVar("T")

#: Points of a curve: a chart is about twice as many pixels wide, and more points only make the page bigger.
_POINTS = 150
#: Evaluations and gradient comparisons that are kept: each is a column of a table.
_COLUMNS = 64


class Thinned(Generic[T]):
    """The items of a stream, two neighbours made one wherever there are more than there is room for.

    Args:
        room: How many there may be, an even number.
        merge: Makes one item of two neighbours, the earlier one first.
    """

    def __init__(self, room: int, merge: Callable[[T, T], T]) -> None:
        self.items: list[T] = []
        self.last: T | None = None
        self.each = 1  # how many of the stream an item stands for; the last one perhaps for fewer
        self.count = 0
        self._room, self._merge = room, merge

    def add(self, item: T) -> None:
        """Take the next item of the stream."""
        if self.count % self.each:
            self.items[-1] = self._merge(self.items[-1], item)
        else:
            if len(self.items) == self._room:
                pairs = zip(self.items[::2], self.items[1::2], strict=True)
                self.items = [self._merge(one, other) for one, other in pairs]
                self.each *= 2
            self.items.append(item)
        self.last = item
        self.count += 1

    def with_last(self) -> list[T]:
        """The items, and the last of the stream where the item that it was merged into is not it."""
        if self.last is None or (self.count - 1) % self.each == 0:
            return self.items
        return [*self.items, self.last]


@dataclass
class LogSteps:
    """One log step, or neighbouring ones taken together.

    Args:
        step: The last one's.
        losses: Summed nats and tokens of every task.
        balance: Over how many log steps, and the summed balance loss.
        shares: Over how many log steps, and the summed shares of the experts, by layer group.
    """

    step: int
    losses: dict[str, list[float]]
    balance: list[float]
    shares: dict[str, list[float]]

    @classmethod
    def of(cls, event: TrainEvent) -> LogSteps:
        """One log step by itself."""
        return cls(
            step=event.step,
            losses={name: [task.nats, task.tokens] for name, task in event.tasks.items()},
            balance=[0, 0.0] if event.balance_loss is None else [1, event.balance_loss],
            shares={group: [1, *shares] for group, shares in (event.expert_share or {}).items()},
        )

    def joined(self, later: LogSteps) -> LogSteps:
        """This and what came next as one, in the place of this."""
        self.step = later.step
        self.balance = list(map(add, self.balance, later.balance))
        _add_up(self.losses, later.losses)
        _add_up(self.shares, later.shares)
        return self

    def loss(self, task: str) -> float | None:
        """Nats a token over all tokens of a task; None where none was seen."""
        nats, tokens = self.losses.get(task, (0.0, 0))
        return nats / tokens if tokens else None

    @property
    def balance_loss(self) -> float | None:
        """Mean over log steps."""
        count, total = self.balance
        return total / count if count else None

    def share(self, group: str) -> list[float] | None:
        """Mean share of every expert of a layer group over log steps."""
        count, *sums = self.shares.get(group, [0])
        return [total / count for total in sums] if count else None


@dataclass(frozen=True)
class MeanConflict:
    """One comparison of the tasks' gradients: the mean cosine over pairs of tasks, by group of parameters."""

    step: int
    cosine: dict[str, float]


class Digest:
    """What a log amounts to; its size depends on the tasks and hardly on the length of the log.

    Curves of training are thinned by adding neighbours up, so that each point is true of all it stands for. Of the
    evaluations some are kept, the first and the last always; each task's lowest loss is of all of them.

    Args:
        events: The log, oldest first.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.points: Thinned[LogSteps] = Thinned(_POINTS, LogSteps.joined)
        self.step = 0
        self.seconds = 0.0
        self.examples: Counter[str] = Counter()
        self.balance_loss: float | None = None
        self.expert_share: ExpertShare = {}
        self.task_share: dict[str, float] = {}
        self.loss_weight: dict[str, float] = {}
        self.lows = Lows()
        self.expert_load: tuple[int, dict[str, ExpertShare]] | None = None
        self.gate_entropy: tuple[int, dict[str, GateEntropy]] | None = None
        self.conflicts: Thinned[MeanConflict] = Thinned(_COLUMNS, _earlier)
        self.conflict: ConflictEvent | None = None
        self.conflict_seconds = 0.0
        self._evals: Thinned[EvalEvent] = Thinned(_COLUMNS, _earlier)
        for event in events:
            self.step = max(self.step, event.step)
            if isinstance(event, TrainEvent):
                self._train(event)
            elif isinstance(event, EvalEvent):
                self._evaluation(event)
            else:
                self._gradients(event)

    @cached_property
    def evals(self) -> list[EvalEvent]:
        """The evaluations that are kept, one a step, without what their routers did."""
        by_step = {event.step: event for event in self._evals.with_last()}
        return [by_step[step] for step in sorted(by_step)]

    @property
    def evaluated(self) -> int:
        """How many evaluations there were."""
        return self._evals.count

    def _train(self, event: TrainEvent) -> None:
        self.points.add(LogSteps.of(event))
        self.seconds = max(self.seconds, event.seconds)
        for name, task in event.tasks.items():
            self.examples[name] += task.examples
        if event.balance_loss is not None:
            self.balance_loss = event.balance_loss
        self.expert_share |= event.expert_share or {}
        self.task_share = event.task_share or self.task_share
        self.loss_weight = event.loss_weight or self.loss_weight

    def _evaluation(self, event: EvalEvent) -> None:
        self.lows.take(event)
        self.expert_load = newer(self.expert_load, event.step, event.expert_load)
        self.gate_entropy = newer(self.gate_entropy, event.step, event.gate_entropy)
        self._evals.add(event.model_copy(update={"expert_load": None, "gate_entropy": None}))

    def _gradients(self, event: ConflictEvent) -> None:
        self.conflict = event
        self.conflict_seconds += event.cost_seconds
        above = {
            group: [value for row, values in enumerate(found.cosine) for value in values[row + 1 :]]
            for group, found in event.groups.items()
        }
        self.conflicts.add(MeanConflict(event.step, {group: fmean(pairs) for group, pairs in above.items() if pairs}))


def _earlier(one: T, _: T) -> T:
    return one


def newer(
    before: tuple[int, dict[str, T]] | None, step: int, found: dict[str, T] | None
) -> tuple[int, dict[str, T]] | None:
    """The newer of two measurements by task; of those made at one step, that of most tasks, else the later."""
    if not found:
        return before
    return before if before is not None and (before[0], len(before[1])) > (step, len(found)) else (step, found)


def _add_up(sums: dict[str, list[float]], more: dict[str, list[float]]) -> None:
    # Done for every log step of a run, so a comprehension would be felt.
    for name, values in more.items():
        sums[name] = list(map(add, sums[name], values)) if name in sums else values
