"""What several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from malora_cli.recipe import LoadedRecipe, Vocabulary


def vocabulary() -> Vocabulary:
    """The methods, formats and metrics there are."""
    from malora_cli.adapters.methods import METHODS
    from malora_cli.data.formats import FORMATS
    from malora_cli.evals.metrics import METRICS
    from malora_cli.recipe import Vocabulary

    return Vocabulary(methods=METHODS, formats=FORMATS, metrics=METRICS)


def recipe_file(recipe: str | Path) -> Path:
    """The file a user means: a path, or the name of a shipped recipe.

    Raises:
        RecipeError: It is a bare name, and neither a file nor a shipped recipe has it.
    """
    from malora_cli.errors import RecipeError
    from malora_cli.recipe import shipped_files
    from malora_cli.registry import did_you_mean

    path = Path(recipe)
    if path.is_file() or path.suffix or path.name != str(recipe):
        return path
    known = shipped_files("recipes")
    if path.name not in known:
        nearest = did_you_mean(path.name, known)
        raise RecipeError(f"no recipe '{path.name}' is shipped, and there is no such file; {nearest}")
    return known[path.name]


def read_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe by its path or its shipped name, with overrides such as ``train.steps=5``.

    Raises:
        RecipeError: The recipe, its mix or an override is wrong; every problem is named.
    """
    from malora_cli.recipe import load_recipe

    return load_recipe(recipe_file(recipe), overrides, vocabulary=vocabulary())
