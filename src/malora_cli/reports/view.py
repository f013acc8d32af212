"""A run read once, in the form that every section of the report looks at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from malora_cli.errors import RunError
from malora_cli.reports.differing import Differing
from malora_cli.reports.paths import shared_manifest, shared_recipe
from malora_cli.results import Digest, EvalResult, ExpertGeometry, Manifest, RunRecord, RunStatus, change, newer
from malora_cli.results.metrics import ExpertShare, GateEntropy

#: Distinct colours that the style sheet has; see ``--task-0`` and following there.
COLOURS = 8
#: One shape for every round through the colours, so that two tasks never look the same.
_GLYPHS = "●■▲◆"
#: Tasks that a page shows one by one; an even number.
SHOWN = 60


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
        manifest: What the run says about itself, without absolute paths either.
        recipe: The resolved recipe as plain data, likewise; empty where the run has none.
        log: What was measured during training.
        evaluations: Finished ``malora eval`` results, oldest first.
        experts: Analysis of the trained experts, of finished runs of routed methods.
        answers: Where base and adapter differ in the evaluation that the page quotes.
    """

    name: str
    folder: str
    manifest: Manifest
    recipe: dict[str, Any]
    log: Digest
    evaluations: tuple[EvalResult, ...]
    experts: ExpertGeometry | None = None
    answers: Differing | None = None

    @classmethod
    def read(cls, record: RunRecord) -> RunView:
        """Read a run folder, finished or not.

        Raises:
            RunError: There is no run, or one of its files cannot be read.
        """
        manifest, path = record.manifest, record.path.resolve()
        try:
            log = Digest(record.metrics)
            recipe = record.recipe if record.recipe_path.is_file() else {}
            evaluations = record.evaluations_by_file()
            experts = ExpertGeometry.load(record.experts_path)
        except (ValueError, TypeError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"a file of the run cannot be read ({reason})", where=str(record.path)) from error
        project = path.parent.parent  # which holds the folder of runs
        view = cls(
            name=path.name,
            folder=path.relative_to(project).as_posix(),
            manifest=shared_manifest(manifest, project),
            recipe=shared_recipe(recipe, project),
            log=log,
            evaluations=tuple(evaluations.values()),
            experts=experts,
        )
        return replace(view, answers=view._differing(evaluations))

    def _differing(self, evaluations: Mapping[Path, EvalResult]) -> Differing | None:
        """Where base and adapter differ, from what lies beside the file of the evaluation that is quoted."""
        quoted = next((file for file, result in evaluations.items() if result is self.evaluation), None)
        return None if quoted is None else Differing.read(quoted, self._shown)

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """All tasks by name, those of one domain next to each other."""
        domains = dict(self.manifest.domains)
        for result in self.evaluations:
            domains = {**{name: task.domain for name, task in result.tasks.items()}, **domains}
        order = list(dict.fromkeys(domains.values()))
        names = sorted(domains, key=lambda name: order.index(domains[name]))
        return {name: Task(name, domains[name], index) for index, name in enumerate(names)}

    @property
    def watched(self) -> str:
        """What to call the losses that training measured; before there were validation rows, they were of test rows."""
        return "validation loss" if self.manifest.validation_data else "loss on test rows"

    @cached_property
    def evaluation(self) -> EvalResult | None:
        """The evaluation that the page quotes: of those against the base that cover the most tasks, the newest."""
        whole = (result for result in self.evaluations if all(task.against for task in result.tasks.values()))
        found = [result for result in whole if result.against_base]
        return max(found, key=lambda r: (len(r.tasks), r.step, r.created), default=None)

    @cached_property
    def expert_load(self) -> tuple[int, dict[str, ExpertShare]] | None:
        """Step and shares by task of the newest measurement, which what `malora eval` found is of equals."""
        return newest_routing(self.log, self.evaluations)[0]

    @cached_property
    def gate_entropy(self) -> tuple[int, dict[str, GateEntropy]] | None:
        """Step and entropies by task, likewise."""
        return newest_routing(self.log, self.evaluations)[1]

    @cached_property
    def step(self) -> int:
        """Optimiser steps done; the log is ahead of the manifest while a run is going."""
        return max(self.manifest.steps, self.log.step)

    @property
    def running(self) -> bool:
        """Whether the run has not come to its end: it is going on, or it was killed."""
        return self.manifest.status is RunStatus.RUNNING

    def ordered(self, names: Iterable[str]) -> list[Task]:
        """Those of the tasks that are named, in the page's order."""
        wanted = set(names)
        return [task for name, task in self.tasks.items() if name in wanted]

    @property
    def crowded(self) -> bool:
        """Whether there are more tasks than a page shows one by one."""
        return len(self.tasks) > SHOWN

    @property
    def shown_count(self) -> int:
        """How many tasks it shows so."""
        return len(self._shown)

    def shown(self, tasks: Iterable[Task]) -> list[Task]:
        """Those of the tasks that the page shows one by one: all, or the ones that matter most where there are many."""
        return [task for task in tasks if task.name in self._shown]

    @cached_property
    def _shown(self) -> set[str]:
        """All tasks, or of very many those whose loss rose most and those for which it fell most."""
        ranked = sorted(self.tasks, key=lambda name: self.loss_change(name) or 0.0)
        return set(ranked if not self.crowded else ranked[: SHOWN // 2] + ranked[-SHOWN // 2 :])

    def loss_change(self, task: str) -> float | None:
        """By how much a task's loss changed, nats a token: during training, else on test rows from base to adapter."""
        if len(self.log.evals) > 1:
            found = change(self.log.evals[0].tasks.get(task), self.log.lows.newest.get(task))
            return found.nats if found is not None else None
        scores = self.evaluation.tasks.get(task) if self.evaluation is not None else None
        if scores is None or scores.against is None or scores.model.loss is None or scores.against.loss is None:
            return None
        return scores.model.loss - scores.against.loss


def newest_routing(
    log: Digest, evaluations: Iterable[EvalResult]
) -> tuple[tuple[int, dict[str, ExpertShare]] | None, tuple[int, dict[str, GateEntropy]] | None]:
    """Expert load and gate entropy by task, each with its step: of training or of `malora eval`, the newest."""
    load, entropy = log.expert_load, log.gate_entropy
    for result in evaluations:
        load = newer(load, result.step, result.expert_load)
        entropy = newer(entropy, result.step, result.gate_entropy)
    return load, entropy
