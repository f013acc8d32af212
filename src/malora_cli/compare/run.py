"""Carrying out a comparison: what is finished stays, what was killed goes on, what is missing is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from malora_cli.compare.plan import PlannedRun
from malora_cli.errors import RunError
from malora_cli.evals.evaluate import Wanted, evaluate_run
from malora_cli.results import EvalResult, RunRecord
from malora_cli.train.resuming import check_same_recipe
from malora_cli.train.run import train
from malora_cli.train.view import View


def carry_out(
    runs: Sequence[PlannedRun],
    new_view: Callable[[], View],
    tell: Callable[[str], None],
    *,
    allow_code: bool = False,
) -> list[tuple[RunRecord, EvalResult]]:
    """Train and evaluate every run that is not there yet, one after another.

    Args:
        runs: The plan.
        new_view: Makes the view of one training run.
        tell: Told what happens to each run.
        allow_code: Run code that models write, in a sandbox.

    Returns:
        Every run with its newest evaluation of all tasks.

    Raises:
        MaloraError: A run cannot be trained, or stands on another base model; or a folder holds a run of another
            recipe, and nothing was trained then.
    """
    for run in runs:
        if (record := _record(run)).exists:
            check_same_recipe(record, run.loaded)
    evaluated: list[tuple[RunRecord, EvalResult]] = []
    for number, run in enumerate(runs, start=1):
        loaded, record = run.loaded, _record(run)
        state = "finished already" if record.finished else "going on" if record.exists else "training"
        tell(f"[{number}/{len(runs)}] {record.path}: {state}")
        if record.finished:
            record.adapter_at(None)  # which its evaluations are of
        else:
            record = train(loaded, new_view(), resume=record.exists)
        if evaluated:
            _check_same_base(evaluated[0][0], record)
        done = [result for result in record.evaluations_of_the_end() if _is_whole(result, run)]
        if not done:
            tell(f"[{number}/{len(runs)}] {record.path}: evaluating")
            done = [evaluate_run(record, loaded.recipe, Wanted(allow_code=allow_code))]
        evaluated.append((record, done[-1]))
    return evaluated


def _record(run: PlannedRun) -> RunRecord:
    return RunRecord(run.loaded.recipe.output.folder / run.loaded.name)


def _check_same_base(first: RunRecord, other: RunRecord) -> None:
    """Make sure that two runs stand on one base model, which may be another one by now under the same name.

    Raises:
        RunError: They do not.
    """
    one, two = first.manifest, other.manifest
    if (one.base_model_sha256, one.base_model_commit) != (two.base_model_sha256, two.base_model_commit):
        raise RunError(
            f"it was trained on another '{two.base_model}' than {first.path} was",
            where=str(other.path),
            fix="Put the base model back or set model.revision, and train one of them again.",
        )


def _is_whole(result: EvalResult, run: PlannedRun) -> bool:
    recipe = run.loaded.recipe
    return set(result.tasks) == set(recipe.mix.tasks) and result.limit == recipe.eval.rows
