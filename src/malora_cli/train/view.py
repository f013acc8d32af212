"""What is shown during training: a live table on a terminal, one plain line a log step elsewhere."""

from __future__ import annotations

import logging
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import combinations
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from malora_cli.errors import MaloraError
from malora_cli.results import (
    Change,
    ConflictEvent,
    EvalEvent,
    Event,
    Lows,
    TaskLoss,
    TrainEvent,
    change,
    changes,
    imbalance,
    measured,
)
from malora_cli.train.processes import writes

_LOG = logging.getLogger(__name__)
_BARS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 24


class View(Protocol):
    """Where the progress of a run goes."""

    def running(
        self, steps: int, share: Mapping[str, float], past: Iterable[Event] = ()
    ) -> AbstractContextManager[None]:
        """Shown for as long as the block runs.

        Args:
            steps: Steps of the run.
            share: Share of the rows that each task is to get.
            past: What a resumed run measured before.
        """

    def tick(self, step: int) -> None:
        """A step is done."""

    def evaluating(self) -> None:
        """The validation rows are about to be measured."""

    def show(self, event: Event) -> None:
        """Something was measured."""


def sparkline(values: Sequence[float]) -> str:
    """The newest values as a row of bars between their lowest and highest."""
    recent = values[-_SPARK_WIDTH:]
    low, high = min(recent), max(recent)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in recent)


def _mean_loss(tasks: dict[str, TaskLoss]) -> float:
    return sum(task.nats for task in tasks.values()) / max(1, sum(task.tokens for task in tasks.values()))


class History:
    """What was measured so far, earlier sessions of a resumed run included.

    Args:
        share: Share of the rows that each task is to get.
        past: What a resumed run measured before.
    """

    def __init__(self, share: Mapping[str, float], past: Iterable[Event]) -> None:
        self.share = share
        self.drawn: Counter[str] = Counter()
        self.evals: list[EvalEvent] = []
        self.lows = Lows()
        self.losses: dict[str, list[float]] = {name: [] for name in share}
        for event in past:
            self.take(event)

    def take(self, event: Event) -> None:
        """Add what was measured."""
        if isinstance(event, EvalEvent):
            self.evals.append(event)
            self.lows.take(event)
        elif isinstance(event, TrainEvent):
            self.share = event.task_share or self.share
            self.drawn.update({name: task.examples for name, task in event.tasks.items()})
            for name, task in event.tasks.items():
                if task.loss is not None:
                    self.losses.setdefault(name, []).append(task.loss)

    @property
    def stopped(self) -> list[str]:
        """Tasks that are no longer drawn."""
        return [name for name, part in self.share.items() if part == 0]

    @property
    def shares(self) -> dict[str, str]:
        """The share of the rows so far that was each task's, and the share it is to have."""
        rows = max(1, self.drawn.total())
        return {name: f"{self.drawn[name] / rows:.1%} ({share:.1%})" for name, share in self.share.items()}


class PlainView:
    """One line for every log step and evaluation.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.first_step: int | None = None
        self.heard = True

    @contextmanager
    def running(self, steps: int, share: Mapping[str, float], past: Iterable[Event] = ()) -> Iterator[None]:
        """Remember the length of the run, for the time that is left; say in the end what each task got."""
        self.steps, self.started = steps, time.perf_counter()
        self.history = History(share, past)
        yield
        if self.history.drawn.total():
            got = (f"{name} {part}" for name, part in self.history.shares.items())
            self._print(f"share of rows, and target: {'  '.join(got)}")

    def tick(self, step: int) -> None:
        """Steps themselves are not shown; the first one says where a resumed run began."""
        if self.first_step is None:
            self.first_step = step - 1

    def evaluating(self) -> None:
        """Say it, since the line that follows may take its time."""
        _LOG.info("measuring the validation rows")

    def show(self, event: Event) -> None:
        """Print one line."""
        if isinstance(event, ConflictEvent):
            self._print(f"step {event.step}/{self.steps}  {_conflict(event)}")
            return
        before = self.history.stopped
        self.history.take(event)
        if newly := [name for name in self.history.stopped if name not in before]:
            self._print(f"step {event.step}/{self.steps}  no longer drawn  {', '.join(newly)}")
        losses = "  ".join(f"{name} {task.loss:.3f}" for name, task in event.tasks.items() if task.loss is not None)
        if isinstance(event, EvalEvent):
            self._print(f"step {event.step}/{self.steps}  validation  {losses}")
            if len(self.history.evals) > 1:
                self._print(f"step {event.step}/{self.steps}  {_seesaw(self.history)}")
            _LOG.debug("training")
            return
        self._print(
            f"step {event.step}/{self.steps}  loss {_mean_loss(event.tasks):.3f}  {losses}  "
            f"{event.tokens_per_second:.0f} tokens/s  eta {self._eta(event.step)}"
        )

    def _print(self, line: str) -> None:
        lost = "nobody reads what is printed any more"
        try:
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)
        except MaloraError as error:
            lost = f"{error.where} {error.what}"
        if self.heard and self.console.quiet:
            self.heard = False
            warnings.warn(f"{lost}; training goes on without it", stacklevel=2)

    def _eta(self, step: int) -> str:
        done = step - (self.first_step or 0)
        left = (time.perf_counter() - self.started) / done * (self.steps - step)
        return f"{int(left) // 60}:{int(left) % 60:02d}"


class LiveView:
    """A progress bar over a table with a row for every task, redrawn in place.

    Args:
        console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.status = "starting"
        self.first_step: int | None = None

    @contextmanager
    def running(self, steps: int, share: Mapping[str, float], past: Iterable[Event] = ()) -> Iterator[None]:
        """Draw for as long as the block runs; the last picture stays."""
        past = list(past)
        self.history = History(share, past)
        done = max((event.step for event in past), default=0)
        if done:
            self.status = f"going on from step {done}"
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bar = self.progress.add_task("training", total=steps, completed=done, note=self.status)
        with Live(get_renderable=self._picture, console=self.console, refresh_per_second=4):
            yield

    def tick(self, step: int) -> None:
        """Move the bar; time counts from the first step, where a resumed run began."""
        if self.first_step is None:
            self.first_step = step - 1
            self.progress.reset(self.bar, completed=self.first_step)
        self.progress.update(self.bar, completed=step, note=self.status)

    def evaluating(self) -> None:
        """Say what is waited for; the loss comes back with the next step."""
        what = "evaluating" if self.history.evals else "measuring the base model"
        self.progress.update(self.bar, note=what)

    def show(self, event: Event) -> None:
        """Add to the rows of the tasks."""
        if isinstance(event, ConflictEvent):
            self.console.print(Text(f"step {event.step}  {_conflict(event)}"))
            return
        self.history.take(event)
        if isinstance(event, TrainEvent):
            self.status = f"loss {_mean_loss(event.tasks):.3f}  {event.tokens_per_second:.0f} tokens/s"
            if event.balance_loss is not None:
                self.status += f"  balance {event.balance_loss:.2f}"
        elif event.step == 0:
            self.status = "first steps"
        self.progress.update(self.bar, note=self.status)

    def _picture(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for heading in ("task", "loss", "change", "validation", "change", "share (target)"):
            table.add_column(heading, justify="left" if heading == "task" else "right")
        table.add_column("loss over time")
        evals, shares = self.history.evals, self.history.shares
        for name, losses in self.history.losses.items():
            line = sparkline(losses) if losses else ""
            table.add_row(Text(name), *_latest(losses), *_validation(evals, name), shares[name], line)
        return Group(self.progress, table, *([Text(_seesaw(self.history))] if len(evals) > 1 else []))


def _conflict(event: ConflictEvent) -> str:
    """The pair of tasks that pull apart most, and how many do."""
    cosine = event.groups["all"].cosine
    pairs = [(cosine[a][b], f"{event.tasks[a]} and {event.tasks[b]}") for a, b in combinations(range(len(cosine)), 2)]
    if not pairs:
        return "gradients  one task has nothing to conflict with"
    against = sum(value < 0 for value, _ in pairs)
    lowest, names = min(pairs)
    return f"gradients  {against} of {len(pairs)} pairs of tasks pull apart, lowest cosine {lowest:.2f} of {names}"


def _latest(values: Sequence[float]) -> tuple[str, str]:
    """The newest value, and how it changed since the one before it; a loss that rises is red."""
    if not values:
        return "-", "-"
    if len(values) == 1:
        return f"{values[-1]:.3f}", "-"
    change = values[-1] - values[-2]
    return f"{values[-1]:.3f}", f"[{'red' if change > 0 else 'green'}]{change:+.3f}[/]"


def _validation(evals: Sequence[EvalEvent], task: str) -> tuple[str, str]:
    """The newest validation loss, and its change; only one beyond its standard error has a colour."""
    found = [event.tasks[task] for event in measured(evals, task)]
    if not found:
        return "-", "-"
    step = change(found[-2], found[-1]) if len(found) > 1 else None
    if step is None:
        return f"{found[-1].loss:.3f}", "-"
    colour = ("red" if step.nats > 0 else "green") if _counts(step) else "dim"
    return f"{found[-1].loss:.3f}", f"[{colour}]{step.nats:+.3f}[/]"


def _counts(step: Change) -> bool:
    """Whether a change is more than chance may make it; where nothing says how large chance is, every one is."""
    return step.clear or step.error is None


def _seesaw(history: History) -> str:
    """Who gained and who lost since the evaluation before, who was better once, and how uneven it is."""
    before, now = history.evals[-2:]
    clear = {name: step.nats for name, step in changes(before, now).items() if _counts(step)}
    sides = {"gained": [n for n in clear if clear[n] < 0], "lost": [n for n in clear if clear[n] > 0]}
    told = [f"{word} {_named(names, clear)}" for word, names in sides.items() if names]
    parts = [f"since step {before.step}: {'; '.join(told) or 'no task gained or lost beyond its standard error'}"]
    worse = {f"{slip.task} (best at step {slip.best_step})": slip.change.nats for slip in history.lows.slips()}
    if worse:
        parts.append(f"above their best: {_named(list(worse), worse)}")
    if (spread := imbalance(history.evals[0], now)) is not None:
        parts.append(f"imbalance {spread:.3f}")
    return "  ".join(parts)


def _named(names: Sequence[str], nats: Mapping[str, float], most: int = 4) -> str:
    """Tasks with their change in nats, the biggest first, those beyond some only counted."""
    largest = sorted(names, key=lambda name: -abs(nats[name]))
    rest = f" and {len(largest) - most} more" if len(largest) > most else ""
    return ", ".join(f"{name} {nats[name]:+.3f}" for name in largest[:most]) + rest


class NoView:
    """Shows nothing: what all processes but one have."""

    @contextmanager
    def running(self, steps: int, share: Mapping[str, float], past: Iterable[Event] = ()) -> Iterator[None]:
        """Nothing to show."""
        yield

    def tick(self, step: int) -> None:
        """Nothing to show."""

    def evaluating(self) -> None:
        """Nothing to show."""

    def show(self, event: Event) -> None:
        """Nothing to show."""


def view_for(console: Console) -> View:
    """The live view on a terminal that can redraw, the plain one elsewhere; none but in the process that writes."""
    if not writes():
        return NoView()
    redraws = console.is_terminal and not console.is_dumb_terminal
    return LiveView(console) if redraws else PlainView(console)
