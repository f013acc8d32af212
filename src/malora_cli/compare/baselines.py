"""A comparison of methods from its plan to its record: tuning, the reported runs, and what may be concluded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from malora_cli.compare.plan import Plan
from malora_cli.compare.planner import PlannedRun, Planner
from malora_cli.compare.record import failures_of, recorded
from malora_cli.compare.run import Crew, Evaluated, check_place_of
from malora_cli.compare.tuning import grid_around, tune
from malora_cli.results import RunRecord, read_json, write_json, writing
from malora_cli.results.comparison import Comparison, Trial, Tuned

_TUNING_FILE = "tuning.json"


@dataclass(frozen=True)
class Study:
    """A comparison that is about to be carried out.

    Args:
        planner: Makes its recipes.
        plan: What it is to find out.
    """

    planner: Planner
    plan: Plan

    def carried_out(self, crew: Crew) -> tuple[Comparison, list[Evaluated]]:
        """Do what is missing of it, and keep what came of it in its folder.

        Raises:
            MaloraError: Another comparison was begun there, or another process writes it; or a folder holds a run of
                another recipe; or no run came to its end; or the process was told to stop.
        """
        folder, plan = self.planner.folder, self.plan
        with writing(RunRecord(folder)):
            first = plan.begun(folder)
            for run in self._foreseen():
                check_place_of(run)
            first.keep(folder)
            tuned, trials = self._tuned(crew, folder)
            rates = {method: it.learning_rate for method, it in tuned.items() if it.bracketed is not None}
            failed = [method for method in plan.methods if method not in tuned]
            outcome = crew.carry_out(self.planner.runs([m for m in plan.methods if m in tuned], plan.seeds, rates))
            for method in failed:
                why = next(trial.why for trial in trials if trial.method == method)
                outcome.failures += failures_of(method, plan.seeds, f"no trial of the tuning came to its end: {why}")
            comparison = recorded(folder.stem, plan, first, tuned, trials, outcome)
            comparison.save(folder)
        return comparison, outcome.evaluated

    def _foreseen(self) -> list[PlannedRun]:
        """The runs that are certain to be made, whatever the tuning finds."""
        planner, plan = self.planner, self.plan
        if plan.tuning == "none":
            return planner.runs(plan.methods, plan.seeds)
        return [planner.trial(method, plan.tuning_seed, rate) for method in plan.methods for rate in self.grid(method)]

    def grid(self, method: str) -> list[float]:
        """The learning rates that are tried first, or the one there is without tuning."""
        if self.plan.tuning == "none":
            return [self.planner.run(method, 0).loaded.recipe.train.learning_rate]
        if isinstance(self.plan.tuning, list):
            return self.plan.tuning
        return grid_around(self.planner.run(method, 0).loaded.recipe.train.learning_rate)

    def _tuned(self, crew: Crew, folder: Path) -> tuple[dict[str, Tuned], list[Trial]]:
        """The learning rate of every method that could be tuned, and how it was found."""
        plan, planner = self.plan, self.planner
        if plan.tuning == "none":
            return {m: Tuned(learning_rate=self.grid(m)[0], bracketed=None) for m in plan.methods}, []
        known = {(trial.method, trial.learning_rate): trial for trial in _trials_in(folder / _TUNING_FILE)}
        trials = list[Trial]()

        def attempt(method: str, rate: float) -> Trial:
            trial = crew.attempt(planner.trial(method, plan.tuning_seed, rate), known.get((method, rate)))
            trials.append(trial)
            write_json(folder / _TUNING_FILE, [trial.model_dump(mode="json") for trial in trials])
            return trial

        tuned = tune({method: self.grid(method) for method in plan.methods}, attempt)
        alive = {trial.method for trial in trials if trial.loss is not None}
        for method, it in tuned.items():
            if method in alive:
                crew.tell(f"[tuning] {method}: learning rate {it.learning_rate:g}")
        return {method: it for method, it in tuned.items() if method in alive}, trials


def _trials_in(path: Path) -> list[Trial]:
    """What is known of trials; a file that cannot be read tells nothing, and they are looked at again."""
    try:
        return [Trial.model_validate(entry) for entry in read_json(path)]
    except (OSError, ValueError, TypeError):
        return []
