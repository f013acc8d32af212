"""A run read once, in the form that every section of the report looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import yaml

from malora_cli.errors import RunError
from malora_cli.results import (
    ConflictEvent,
    EvalEvent,
    EvalResult,
    ExpertGeometry,
    Manifest,
    RunRecord,
    RunStatus,
    TrainEvent,
)

T = TypeVar("T")

#: Distinct colours that the style sheet has; see ``--task-0`` and following there.
COLOURS = 8
#: One shape for every round through the colours, so that two tasks never look the same.
_GLYPHS = "●■▲◆"


@dataclass(frozen=True)
class Task:
    """A task and how it looks, which is the same all over the page."""

    name: str
    domain: str
    index: int

    @property
    def slot(self) -> int:
        """Which of the colours is this task's."""
        return self.index % COLOURS

    @property
    def colour(self) -> str:
        """The colour, as CSS; light and dark pages give it different values."""
        return f"var(--task-{self.slot})"

    @property
    def glyph(self) -> str:
        """The shape that tells apart tasks of the same colour."""
        return _GLYPHS[self.index // COLOURS % len(_GLYPHS)]


@dataclass(frozen=True)
class RunView:
    """Everything a report shows of one run.

    Args:
        name: Name of the run's folder.
        folder: The folder as commands name it, such as ``runs/quickstart``; never an absolute path, because pages
            are passed on.
        manifest: What the run says about itself.
        recipe: The resolved recipe as plain data, empty where the run has none.
        train: Log steps, oldest first.
        evals: Evaluations during training, oldest first, one a step.
        evaluations: Finished ``malora eval`` results, oldest first.
        experts: Analysis of the trained experts, of finished runs of routed methods.
        conflicts: Comparisons of the tasks' gradients, oldest first.
    """

    name: str
    folder: str
    manifest: Manifest
    recipe: dict[str, Any]
    train: tuple[TrainEvent, ...]
    evals: tuple[EvalEvent, ...]
    evaluations: tuple[EvalResult, ...]
    experts: ExpertGeometry | None = None
    conflicts: tuple[ConflictEvent, ...] = ()

    @classmethod
    def read(cls, record: RunRecord) -> RunView:
        """Read a run folder, finished or not.

        Raises:
            RunError: There is no run, or one of its files cannot be read.
        """
        manifest, path = record.manifest, record.path.resolve()
        try:
            # Read in one pass: a run that is still going may append between two.
            events = list(record.metrics)
            recipe = record.recipe if record.recipe_path.is_file() else {}
            evaluations = record.evaluations()
            experts = ExpertGeometry.load(record.experts_path)
        except (ValueError, TypeError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"a file of the run cannot be read ({reason})", where=str(record.path)) from error
        evals = {event.step: event for event in events if isinstance(event, EvalEvent)}
        return cls(
            name=path.name,
            folder=f"{path.parent.name}/{path.name}",
            manifest=manifest,
            recipe=recipe,
            train=tuple(event for event in events if isinstance(event, TrainEvent)),
            evals=tuple(evals[step] for step in sorted(evals)),
            evaluations=tuple(evaluations),
            experts=experts,
            conflicts=tuple(event for event in events if isinstance(event, ConflictEvent)),
        )

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """All tasks by name, those of one domain next to each other."""
        domains = dict(self.manifest.domains)
        for result in self.evaluations:
            domains = {**{name: task.domain for name, task in result.tasks.items()}, **domains}
        order = list(dict.fromkeys(domains.values()))
        names = sorted(domains, key=lambda name: order.index(domains[name]))
        return {name: Task(name, domains[name], index) for index, name in enumerate(names)}

    @cached_property
    def evaluation(self) -> EvalResult | None:
        """The evaluation that the page quotes: of those that cover the most tasks, the newest."""
        return max(self.evaluations, key=lambda r: (len(r.tasks), r.step, r.created), default=None)

    def newest(self, part: Callable[[EvalEvent | EvalResult], dict[str, T] | None]) -> tuple[int, dict[str, T]] | None:
        """Step and values by task of the newest measurement of something.

        Of those made at one step, that of most tasks, and of these the last, which what `malora eval` found is.

        Args:
            part: What to look at in an evaluation; it has none where this is empty or None.
        """
        measured: list[EvalEvent | EvalResult] = [*self.evals, *self.evaluations]
        logged = [(found.step, value) for found in measured if (value := part(found))]
        return max(reversed(logged), key=lambda entry: (entry[0], len(entry[1])), default=None)

    @cached_property
    def step(self) -> int:
        """Optimiser steps done; the log is ahead of the manifest while a run is going."""
        logged = [event.step for event in self.train] + [event.step for event in self.evals]
        return max([self.manifest.steps, *logged])

    @property
    def running(self) -> bool:
        """Whether the run has not come to its end: it is going on, or it was killed."""
        return self.manifest.status is RunStatus.RUNNING

    def ordered(self, names: Iterable[str]) -> list[Task]:
        """Those of the tasks that are named, in the page's order."""
        wanted = set(names)
        return [task for name, task in self.tasks.items() if name in wanted]
