"""Carrying out a comparison: what is finished stays, what was killed goes on, what is missing is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from malora_cli.compare.outcome import Evaluated, Outcome, UnlikeError, check_same_base, check_same_rows
from malora_cli.compare.planner import Errand, PlannedRun
from malora_cli.errors import DivergedError, MaloraError, RunError, StoppedError
from malora_cli.evals.evaluate import Wanted, evaluate_run
from malora_cli.modeling.memory import make_room
from malora_cli.results import EvalResult, RunRecord, read_json
from malora_cli.results.comparison import Failure, Trial
from malora_cli.train.resuming import check_same_recipe
from malora_cli.train.run import train
from malora_cli.train.view import View

#: Does what is missing of runs, several at a time, each in a process of its own, and has each looked at in the end.
SideBySide = Callable[[Sequence[Errand], Callable[[PlannedRun], None]], None]


@dataclass(frozen=True)
class Crew:
    """Trains and evaluates runs, one after another.

    Args:
        new_view: Makes the view of one training run.
        tell: Told what happens to each run.
        allow_code: Run code that models write, in a sandbox.
        side_by_side: Does what is missing first; None trains each run when its turn comes.
        diverged: Names of runs that did so in processes of their own, which they would do here again.
    """

    new_view: Callable[[], View]
    tell: Callable[[str], None]
    allow_code: bool = False
    side_by_side: SideBySide | None = None
    diverged: set[str] = field(default_factory=set)

    def carry_out(self, runs: Sequence[PlannedRun]) -> Outcome:
        """Train and evaluate every run that is not there yet; where one fails, the others go on.

        Raises:
            MaloraError: A folder holds a run of another recipe, and nothing was trained then; or a run stands on
                other rows or another base model; or the process was told to stop.
        """
        for run in runs:
            check_place_of(run)
        outcome = Outcome()
        for number, run in enumerate(runs, start=1):
            place = f"[{number}/{len(runs)}]"
            try:
                outcome.evaluated.append(self._evaluated(run, place, outcome))
            except (StoppedError, UnlikeError):
                raise
            except MaloraError as error:
                self.tell(f"{place} {run.record.path}: failed: {error}")
                outcome.failures.append(Failure(method=run.method, seed=run.seed, run=run.name, why=str(error)))
        return outcome

    def _evaluated(self, run: PlannedRun, place: str, before: Outcome) -> Evaluated:
        record = self._trained(run, place)
        if before.evaluated:
            check_same_base(before.evaluated[0].record, record)
            check_same_rows([before.evaluated[0].record, record])
        found = whole_evaluation(run, record)
        if found is None:
            self.tell(f"{place} {record.path}: evaluating")
            evaluate(run, allow_code=self.allow_code)
            found = whole_evaluation(run, record)
        if found is None:
            raise RunError("its evaluation is of other rows than were asked for", where=str(record.path))
        file, result = found
        return Evaluated(run.method, run.seed, record, result, file, run.task)

    def _trained(self, run: PlannedRun, place: str) -> RunRecord:
        record = run.record
        state = "finished already" if record.finished else "going on" if record.exists else "training"
        self.tell(f"{place} {record.path}: {state}")
        if record.finished:
            if not record.is_light:
                record.adapter_at(None)  # which its evaluations are of
            return record
        if run.name in self.diverged and (why := why_diverged(record)) is not None:
            raise DivergedError(why)
        make_room()
        return train(run.loaded, self.new_view(), resume=record.exists)

    def go_side_by_side(self, runs: Sequence[PlannedRun], *, evaluate: bool) -> None:
        """Do what is missing of runs in several processes; what fails there is looked at when its turn comes.

        Raises:
            MaloraError: A folder holds a run of another recipe; or a run stands on other rows or another base model
                than those before it; or the process was told to stop.
        """
        if self.side_by_side is None:
            return
        errands = [self._errand(run, evaluate=evaluate) for run in runs]
        missing = [errand for errand in errands if errand.train or errand.evaluate]
        for errand in missing:
            check_place_of(errand.run)
        finished = [record for run in runs if (record := run.record).finished]

        def look_at(run: PlannedRun) -> None:
            if (record := run.record).finished:
                finished.append(record)
                check_same_base(finished[0], record)
                check_same_rows([finished[0], record])
            elif why_diverged(record) is not None:
                self.diverged.add(run.name)

        if missing:
            self.side_by_side(missing, look_at)

    def _errand(self, run: PlannedRun, *, evaluate: bool) -> Errand:
        record = run.record
        with suppress(MaloraError):  # what is damaged fails when its turn comes
            evaluate = evaluate and not (record.finished and whole_evaluation(run, record))
            return Errand(run, train=not record.finished, evaluate=evaluate, allow_code=self.allow_code)
        return Errand(run, train=False, evaluate=False)

    def attempt(self, run: PlannedRun, known: Trial | None = None) -> Trial:
        """Train one trial of the tuning, and take its validation loss, mean over tasks.

        Args:
            run: The trial.
            known: What became of it before; it is not tried again where it diverged.

        Raises:
            MaloraError: Its folder holds another run, or the process was told to stop.
        """
        record, rate = run.record, run.loaded.recipe.train.learning_rate
        if known is not None and known.diverged:
            return known
        told = {"method": run.method, "learning_rate": rate, "run": run.name}
        check_place_of(run)
        try:
            record = self._trained(run, "[tuning]")
            return Trial(**told, loss=_validation_loss(record), seconds=record.manifest.train_seconds)
        except StoppedError:
            raise
        except MaloraError as error:
            self.tell(f"[tuning] {record.path}: failed: {error}")
            return Trial(**told, loss=None, why=str(error), diverged=isinstance(error, DivergedError))


def why_diverged(record: RunRecord) -> str | None:
    """How training ended in a NaN or infinite loss, as a run's folder says; None where it did not."""
    if record.finished or not record.diverged_path.is_file():
        return None
    with suppress(OSError, ValueError, TypeError, KeyError):  # written as a process ended
        return str(read_json(record.diverged_path)["why"])
    return "it diverged"


def evaluate(run: PlannedRun, *, allow_code: bool) -> None:
    """Evaluate a finished run on the tasks that it was trained on.

    Args:
        run: The run.
        allow_code: Run code that models write, in a sandbox.

    Raises:
        MaloraError: It cannot be evaluated.
    """
    tasks = sorted(run.tasks) if run.task else None
    make_room()
    evaluate_run(run.record, run.loaded.recipe, Wanted(tasks=tasks, allow_code=allow_code))


def check_place_of(run: PlannedRun) -> None:
    """Make sure that a run's folder is free, or holds that run.

    Raises:
        RunError: It holds a run of another recipe.
    """
    if (record := run.record).exists:
        check_same_recipe(record, run.loaded, may_move=True)  # runs travel; hashes say whether the rows are the same


def _validation_loss(record: RunRecord) -> float:
    """Nats a token of validation rows at the end of training, mean over tasks."""
    measured = [event for event in record.metrics.evals() if event.step == record.manifest.steps]
    losses = [task.loss for task in measured[-1].tasks.values() if task.loss is not None] if measured else []
    if not losses:
        raise RunError(
            "no validation loss to tune by",
            where=str(record.path),
            fix="Keep validation rows (mix.validation), or compare with --tune none.",
        )
    return fmean(losses)


def whole_evaluation(run: PlannedRun, record: RunRecord) -> tuple[Path, EvalResult] | None:
    """The newest evaluation of all its tasks and rows, if there is one."""
    recipe = run.loaded.recipe
    whole = [
        (file, result)
        for file, result in record.evaluations_by_file().items()
        if result.step == record.manifest.steps
        and result.of_test_rows
        and set(result.tasks) == run.tasks
        and result.limit == recipe.eval.rows
    ]
    return whole[-1] if whole else None
