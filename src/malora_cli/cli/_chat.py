"""Whom ``malora chat`` talks to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from malora_cli.cli._common import find_and_tell, prepare_libraries, recipe_of_run, telling_of_moves
from malora_cli.cli._evaluation import recipe_named
from malora_cli.errors import ModelError, RecipeError, RunError

if TYPE_CHECKING:
    from malora_cli.chat.speaker import Decoding, Speaker
    from malora_cli.evals.subject import Models
    from malora_cli.recipe import Recipe
    from malora_cli.results import RunRecord

#: Longest answer where no task says so, in tokens.
_MAX_NEW_TOKENS = 512


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, option by option."""

    run: Path | None
    settings: Sequence[str]
    task: str | None
    mix: str | None
    experts: bool
    against: str | None
    max_new_tokens: int | None
    temperature: float
    seed: int | None
    step: int | None


@dataclass(frozen=True)
class Opened:
    """A conversation that can begin.

    Args:
        title: Whom it is with, and as what task.
        speakers: Who answers, in this order.
        decoding: How answers are decoded.
    """

    title: str
    speakers: list[Speaker]
    decoding: Decoding


def opened(asked: Asked, runs: Path, *, trust: bool) -> Opened:
    """Load what is asked for.

    Raises:
        MaloraError: It is not there, or something else is asked of it than it can do.
    """
    if not math.isfinite(asked.temperature):
        raise RecipeError(f"got {asked.temperature}, not a finite number", where="--temperature")
    record = _run_or_none(asked, runs)
    recipe = _recipe(record, asked, trust=trust)
    prepare_libraries()
    from malora_cli.chat.opening import check_asked, speakers_of, task_named
    from malora_cli.chat.speaker import Decoding

    task = None if asked.task is None else task_named(recipe.mix, asked.task)
    system = recipe.mix.system if record is not None or asked.mix is not None else None
    if task is not None and task.system is not None:
        system = task.system
    with telling_of_moves(recipe):
        models = _models(record, recipe, asked, runs)
        check_asked(models, experts=asked.experts, against=asked.against)
        speakers = speakers_of(models, system, experts=asked.experts, with_base=asked.against is not None)
    longest = asked.max_new_tokens or (_MAX_NEW_TOKENS if task is None else task.max_new_tokens)
    return Opened(_title(record, models, asked), speakers, Decoding(longest, asked.temperature, asked.seed))


def _recipe(record: RunRecord | None, asked: Asked, *, trust: bool) -> Recipe:
    if record is not None and asked.mix is None:
        return recipe_of_run(record, asked.settings, trust=trust, model_only=True)
    # A recipe has a mix; of a model alone none of its tasks is asked.
    return recipe_named(record, asked.run, asked.settings, mix=asked.mix or "quickstart", trust=trust)


def _run_or_none(asked: Asked, runs: Path) -> RunRecord | None:
    """The run that is named; None where it may be a model.

    Raises:
        RunError: There is none, and no model can be meant.
        RecipeError: What is asked is a run's alone.
    """
    try:
        return find_and_tell(asked.run, runs, err=True)
    except RunError:
        if asked.run is None or "=" in str(asked.run):
            raise
    if asked.step is not None:
        raise RunError("not a run, so it has no checkpoints", where=str(asked.run), fix="Leave --step out.")
    if asked.task is not None and asked.mix is None:
        raise RecipeError("a model has no tasks of its own", where="--task", fix="Add --mix MIX, which has them.")
    return None


def _models(record: RunRecord | None, recipe: Recipe, asked: Asked, runs: Path) -> Models:
    from malora_cli.evals.subject import Models
    from malora_cli.modeling.finding import ALIASES
    from malora_cli.registry import did_you_mean
    from malora_cli.results import runs_under

    if record is not None:
        return Models.of_run(record, recipe, asked.step)
    try:
        return Models.named(recipe.model)
    except ModelError as error:
        if asked.run is None or asked.run.exists():
            raise
        known = [*(run.name for run in runs_under(runs)), *ALIASES]
        raise RunError(
            f"not found as a run in {runs}, nor as a model ({error.what}); {did_you_mean(str(asked.run), known)}",
            where=str(asked.run),
        ) from error


def _title(record: RunRecord | None, models: Models, asked: Asked) -> str:
    if record is not None:
        step = record.manifest.steps if asked.step is None else asked.step
        title = f"{record.path} at step {step:,}, on {models.base.name}"
    else:
        title = str(asked.run) + (f", on {models.base.name}" if models.adapter is not None else "")
    return title if asked.task is None else f"{title}, as for task {asked.task}"
