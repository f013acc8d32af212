"""A comparison of methods from its plan to its record: tuning, the reported runs, and what may be concluded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from malora_cli.compare.command import command_of
from malora_cli.compare.foreseen import told_visible, visible_difference
from malora_cli.compare.matching import parameters_of
from malora_cli.compare.outcome import Evaluated, check_same_rows
from malora_cli.compare.plan import Plan
from malora_cli.compare.planner import PlannedRun, Planner
from malora_cli.compare.record import failures_of, recorded
from malora_cli.compare.room import check_room
from malora_cli.compare.run import Crew, check_place_of, whole_evaluation, why_diverged
from malora_cli.compare.tuning import grid_around, tune
from malora_cli.errors import MaloraError, RunError
from malora_cli.results import RunRecord, read_json, write_json, writing
from malora_cli.results.comparison import Comparison, Trial, Tuned
from malora_cli.train.view import View

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
            foreseen = self._foreseen()
            for run in foreseen:
                check_place_of(run)
            begins = not any(run.record.finished for run in foreseen)
            self._check_room(self.all_runs() if begins else foreseen)
            first.keep(folder)
            tuned, trials = self._tuned(crew, folder)
            if trials and (visible := visible_difference(self.planner, plan)) is not None:
                crew.tell(f"[tuning] {told_visible(plan, visible, folder.parent)}")
            rates = {method: it.learning_rate for method, it in tuned.items() if it.bracketed is not None}
            failed = [method for method in plan.methods if method not in tuned]
            runs = self.planner.runs([method for method in plan.methods if method in tuned], plan.seeds, rates)
            runs += self.runs_alone(rates) if plan.baseline in tuned else []
            self._check_room(runs)
            crew.go_side_by_side(runs, evaluate=True)
            outcome = crew.carry_out(runs)
            for method in failed:
                why = _why_not_tuned([trial for trial in trials if trial.method == method])
                outcome.failures += failures_of(method, plan.seeds, why)
            comparison = recorded(folder.stem, plan, first, tuned, trials, outcome, _runs_of(trials, folder.parent))
            comparison = comparison.model_copy(
                update={"command": command_of(self.planner, plan, allow_code=crew.allow_code)}
            )
            comparison.save(folder)
        return comparison, outcome.evaluated

    def missing(self, phase: Literal["tune", "report"]) -> list[PlannedRun]:
        """The runs of a phase that are not finished, as far as they are known: whether grids go on shows in the end.

        Raises:
            RunError: Reported runs are asked for, and rates are not tuned yet.
        """
        crew = Crew(_nobody, lambda _line: None)
        planner, plan = self.planner, self.plan
        plan.begun(planner.folder).keep(planner.folder)
        alive = set[str]()
        open_trials: list[PlannedRun] = []

        def attempt(wanted: Sequence[tuple[str, float]]) -> list[Trial]:
            runs = [planner.trial(method, plan.tuning_seed, rate) for method, rate in wanted]
            for run in runs:
                check_place_of(run)
            halted = [_halted(run) for run in runs]
            open_trials.extend(run for run, at in zip(runs, halted, strict=True) if not at and not run.record.finished)
            if open_trials:
                raise _OpenTrialsError("trials of the tuning are missing")
            trials = [crew.attempt(run, at) for run, at in zip(runs, halted, strict=True)]
            alive.update(trial.method for trial in trials if trial.loss is not None)
            return trials

        rates = dict[str, float]()
        if plan.tuning != "none":
            try:
                found = tune({method: self.grid(method) for method in plan.methods}, attempt)
            except _OpenTrialsError:
                if phase == "tune":
                    return open_trials
                raise RunError(
                    f"{len(open_trials)} trials of the tuning are not finished, as {open_trials[0].name}",
                    where="--phase report",
                    fix="Run the lines of --phase tune first.",
                ) from None
            rates = {method: it.learning_rate for method, it in found.items() if method in alive}
        if phase == "tune":
            return []
        methods = plan.methods if plan.tuning == "none" else list(rates)
        runs = [
            *planner.runs(methods, plan.seeds, rates),
            *(self.runs_alone(rates) if plan.baseline in methods else []),
        ]
        for run in runs:
            check_place_of(run)
        return [run for run in runs if whole_evaluation(run, run.record) is None]

    def runs_alone(self, rates: Mapping[str, float]) -> list[PlannedRun]:
        """The baseline on every task alone, at the rate that it has in the mixture, where that is asked for."""
        plan, planner = self.plan, self.planner
        if not plan.single_task:
            return []
        tasks, rate = planner.own.recipe.mix.tasks, rates.get(plan.baseline)
        return [planner.alone(plan.baseline, task, seed, rate=rate) for seed in plan.seeds for task in tasks]

    def _foreseen(self) -> list[PlannedRun]:
        """The runs that are certain to be made, whatever the tuning finds."""
        planner, plan = self.planner, self.plan
        if plan.tuning == "none":
            return planner.runs(plan.methods, plan.seeds)
        return [planner.trial(method, plan.tuning_seed, rate) for method in plan.methods for rate in self.grid(method)]

    def all_runs(self) -> list[PlannedRun]:
        """The trials that are certain and the reported runs, at the rates that were found before, or none yet."""
        rates = dict[str, float]()
        with suppress(RunError):  # there is no record yet
            for it in Comparison.load(self.planner.folder).methods:
                rates |= {} if it.tuned.bracketed is None else {it.method: it.tuned.learning_rate}
        reported = self.planner.runs(self.plan.methods, self.plan.seeds, rates) + self.runs_alone(rates)
        return reported if self.plan.tuning == "none" else self._foreseen() + reported

    def _check_room(self, runs: Sequence[PlannedRun]) -> None:
        """Make sure that the disk has room for what is missing; a method that cannot be built takes none."""
        counted = dict[str, int]()
        for method in dict.fromkeys(run.method for run in runs if not run.record.finished):
            with suppress(MaloraError):  # its runs are going to fail, and the others go on
                counted |= parameters_of(self.planner, [method])
        check_room([run for run in runs if run.method in counted], counted)

    def grid(self, method: str) -> list[float]:
        """The learning rates that are tried first, or the one there is without tuning."""
        if self.plan.tuning == "none":
            return [self.planner.run(method, 0).loaded.recipe.train.learning_rate]
        if isinstance(self.plan.tuning, list):
            return self.plan.tuning
        return grid_around(self.planner.run(method, 0).loaded.recipe.train.learning_rate)

    def first_trials(self) -> dict[str, int]:
        """How many learning rates are tried first, by method."""
        return {method: 0 if self.plan.tuning == "none" else len(self.grid(method)) for method in self.plan.methods}

    def _tuned(self, crew: Crew, folder: Path) -> tuple[dict[str, Tuned], list[Trial]]:
        """The learning rate of every method that could be tuned, and how it was found."""
        plan, planner = self.plan, self.planner
        if plan.tuning == "none":
            return {m: Tuned(learning_rate=self.grid(m)[0], bracketed=None) for m in plan.methods}, []
        known = {(trial.method, trial.learning_rate): trial for trial in _trials_in(folder / _TUNING_FILE)}
        trials = list[Trial]()

        def attempt(wanted: Sequence[tuple[str, float]]) -> list[Trial]:
            runs = [planner.trial(method, plan.tuning_seed, rate) for method, rate in wanted]
            diverged = [key in known and known[key].diverged for key in wanted]
            left = [run for run, ended in zip(runs, diverged, strict=True) if not ended and _halted(run) is None]
            crew.go_side_by_side(left, evaluate=False)
            for run, key in zip(runs, wanted, strict=True):
                before = known.pop(key, None)
                trials.append(crew.attempt(run, _halted(run) or before))
                kept = [*trials, *known.values()]  # those to come diverged before, which a kill does not forget
                write_json(folder / _TUNING_FILE, [trial.model_dump(mode="json") for trial in kept])
                check_same_rows(_runs_of(trials, folder.parent))
            return trials[-len(wanted) :]

        tuned = tune({method: self.grid(method) for method in plan.methods}, attempt)
        alive = {trial.method for trial in trials if trial.loss is not None}
        # Without a trial that failed for another reason than its rate, the best of the others may not be the best.
        alive -= {trial.method for trial in trials if trial.loss is None and not trial.diverged}
        for method, it in tuned.items():
            if method in alive:
                crew.tell(f"[tuning] {method}: learning rate {it.learning_rate:g}")
        return {method: it for method, it in tuned.items() if method in alive}, trials


def _runs_of(trials: Sequence[Trial], folder: Path) -> list[RunRecord]:
    """The runs of trials that are there."""
    records = [RunRecord(folder / trial.run) for trial in trials]
    return [record for record in records if record.exists]


class _OpenTrialsError(Exception):
    """Trials are missing that the next ones follow from."""


def _halted(run: PlannedRun) -> Trial | None:
    """A trial that diverged, as its folder shows; it would do so again."""
    if (why := why_diverged(run.record)) is None:
        return None
    rate = run.loaded.recipe.train.learning_rate
    return Trial(method=run.method, learning_rate=rate, run=run.name, loss=None, why=why, diverged=True)


def _why_not_tuned(trials: Sequence[Trial]) -> str:
    """Why a method has no learning rate."""
    for trial in trials:
        if trial.loss is None and not trial.diverged:
            return f"a trial of the tuning failed, at learning rate {trial.learning_rate:g}: {trial.why}"
    return f"it diverged at every learning rate, as at {trials[0].learning_rate:g}: {trials[0].why}"


def _nobody() -> View:
    raise AssertionError("nothing is trained")


def _trials_in(path: Path) -> list[Trial]:
    """What is known of trials; a file that cannot be read tells nothing, and they are looked at again."""
    try:
        return [Trial.model_validate(entry) for entry in read_json(path)]
    except (OSError, ValueError, TypeError):
        return []
