"""What names stand for: those of recipes, and those inside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from malora_cli.recipe import LoadedRecipe, Vocabulary
    from malora_cli.results import RunRecord


def vocabulary() -> Vocabulary:
    """The methods, remedies, formats and metrics there are."""
    from malora_cli.adapters.methods import METHODS
    from malora_cli.data.formats import FORMATS
    from malora_cli.evals.metrics import METRICS
    from malora_cli.recipe import Vocabulary
    from malora_cli.train.remedies import REMEDIES

    remedies = {name: remedy.Settings for name, remedy in REMEDIES.items()}
    return Vocabulary(methods=METHODS, formats=FORMATS, metrics=METRICS, remedies=remedies)


def recipe_file(recipe: str | Path) -> Path:
    """The file a user means: a path, or the name of a shipped recipe.

    Raises:
        RecipeError: It is a bare name, and neither a file nor a shipped recipe has it.
    """
    from malora_cli.errors import RecipeError
    from malora_cli.recipe import shipped_files
    from malora_cli.registry import did_you_mean

    path = Path(recipe)
    if path.is_file() or path.suffix:
        return path
    name, known = path.as_posix(), shipped_files("recipes")
    if name not in known and path.name == name:
        nearest = did_you_mean(name, known)
        raise RecipeError(f"recipe '{name}' not found, neither as a file nor among the shipped ones; {nearest}")
    return known.get(name, path)


def load_named(recipe: str | Path, overrides: Sequence[str] = (), *, model_only: bool = False) -> LoadedRecipe:
    """Read a recipe by its path or its shipped name, with overrides such as ``train.steps=5``.

    Args:
        recipe: The recipe.
        overrides: Settings over the recipe's.
        model_only: As in `load_recipe`.

    Raises:
        RecipeError: The recipe, its mix or an override is wrong; every problem is named.
    """
    from malora_cli.recipe import load_recipe

    path = recipe_file(recipe)
    return load_recipe(path, overrides, vocabulary=vocabulary(), was=_where_it_was(path), model_only=model_only)


def granted(trust: bool) -> list[str]:
    """The override that ``--trust-remote-code`` stands for."""
    return ["model.trust_remote_code=true"] if trust else []


def with_run(record: RunRecord, *, trust: bool) -> list[str]:
    """The overrides that a run's own recipe is read with; that alone never allows code of the model."""
    return [*granted(trust), *([] if record.knows_validation else ["mix.validation=null"])]


def _where_it_was(recipe: Path) -> Path | None:
    """Where the run lay whose own recipe this is; None for any other recipe."""
    from malora_cli.results import RunRecord

    record = RunRecord(recipe.parent)
    return record.was_at if recipe.name == record.recipe_path.name else None
