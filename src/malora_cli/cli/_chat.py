"""Whom ``malora chat`` talks to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from malora_cli.cli._common import find_and_tell, prepare_libraries, recipe_of_run, telling_of_moves
from malora_cli.cli._evaluation import recipe_named
from malora_cli.errors import ModelError, RecipeError, RunError
from malora_cli.modeling.finding import ALIASES, check_base
from malora_cli.registry import did_you_mean, unknown
from malora_cli.results import runs_under

if TYPE_CHECKING:
    from malora_cli.chat.speaker import Decoding, Speaker
    from malora_cli.evals.subject import Models
    from malora_cli.recipe import Recipe, TaskSettings
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
class Whom:
    """Whom the conversation is with, as far as no library is needed to say so.

    Args:
        record: The run; None where it is a model.
        recipe: By which it is loaded.
        task: As which it is asked; None is none.
    """

    record: RunRecord | None
    recipe: Recipe
    task: TaskSettings | None


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


def found(asked: Asked, runs: Path, *, trust: bool) -> Whom:
    """Find what is asked for.

    Raises:
        MaloraError: It is not there, or an option makes no sense.
    """
    if not math.isfinite(asked.temperature):
        raise RecipeError(f"got {asked.temperature}, not a finite number", where="--temperature")
    if asked.against not in (None, "base"):
        fix = "Use --against base; `malora eval RUN --against OTHER` compares runs."
        raise RecipeError(f"got '{asked.against}', expected 'base'", where="--against", fix=fix)
    record = _run_or_none(asked, runs)
    recipe = _recipe(record, asked, trust=trust)
    if asked.task is not None and asked.task not in recipe.mix.tasks:
        raise RecipeError(unknown("task", asked.task, recipe.mix.tasks), where="--task")
    if record is not None:
        record.adapter_at(asked.step)
    if record is not None or not (Path(recipe.model.base) / "adapter_config.json").is_file():
        with telling_of_moves(recipe), _or_no_run(record, asked, runs):
            check_base(recipe.model)
    return Whom(record, recipe, None if asked.task is None else recipe.mix.tasks[asked.task])


def opened(asked: Asked, whom: Whom) -> Opened:
    """Load what was found.

    Raises:
        MaloraError: It cannot be loaded, or something else is asked of it than it can do.
    """
    prepare_libraries()
    from malora_cli.chat.opening import check_asked, speakers_of
    from malora_cli.chat.speaker import Decoding
    from malora_cli.evals.subject import Models

    record, recipe, task = whom.record, whom.recipe, whom.task
    system = recipe.mix.system if record is not None or asked.mix is not None else None
    if task is not None and task.system is not None:
        system = task.system
    with telling_of_moves(recipe):
        models = Models.named(recipe.model) if record is None else Models.of_run(record, recipe, asked.step)
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


@contextmanager
def _or_no_run(record: RunRecord | None, asked: Asked, runs: Path) -> Iterator[None]:
    """Where a model is not found, say that no run is of that name either."""
    try:
        yield
    except ModelError as error:
        if record is not None or asked.run is None or asked.run.exists():
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
