"""The runs of a comparison: one recipe, with only the method and the seed changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from malora_cli.errors import RecipeError
from malora_cli.recipe import LoadedRecipe, Recipe, Vocabulary, load_recipe
from malora_cli.registry import did_you_mean

#: Settings of ``train`` that every run of a comparison shares; the others are a method's own affair.
_BUDGET = ("steps", "epochs", "batch_size", "max_length", "seed")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison."""

    method: str
    seed: int
    loaded: LoadedRecipe


def parse_method_overrides(texts: Sequence[str]) -> dict[str, list[str]]:
    """``["lora:train.learning_rate=1e-3"]`` as ``{"lora": ["train.learning_rate=1e-3"]}``.

    Raises:
        RecipeError: One has no method in front.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        method, colon, override = text.partition(":")
        if not colon or "=" in method:
            raise RecipeError(
                f"'{text}' names no method", where="--for", fix="Write it as METHOD:section.setting=value."
            )
        found.setdefault(method, []).append(override)
    return found


def parse_seeds(text: str) -> list[int]:
    """``"0,1,2"`` as numbers, each once.

    Raises:
        RecipeError: It is something else.
    """
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise RecipeError(f"'{text}' is no list of seeds", where="--seeds", fix="Write it as 0,1,2.") from None


def plan(
    path: Path,
    overrides: Sequence[str],
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    by_method: Mapping[str, Sequence[str]],
    vocabulary: Vocabulary,
) -> list[PlannedRun]:
    """The recipe once for every method and seed; nothing is run.

    The recipe's own method keeps its settings; the others take their defaults, on the same linears.

    Args:
        path: The recipe.
        overrides: For every run.
        methods: Names of the methods, each once.
        seeds: Values of ``train.seed``.
        by_method: Further overrides for single methods, such as the learning rate that suits each.
        vocabulary: The names a recipe may use.

    Raises:
        RecipeError: The recipe is wrong, a method is not known, or one would get another budget than the others.
    """
    _check_methods(methods, by_method, vocabulary)
    own = load_recipe(path, overrides, vocabulary=vocabulary)
    targets = own.recipe.method.target_modules
    runs = []
    for method in methods:
        for seed in seeds:
            changed = [] if method == own.recipe.method.name else [f"method={{name: {method}}}"]
            if changed and targets is not None:
                changed.append(f"method.target_modules={json.dumps(targets)}")
            changed += [f"train.seed={seed}", f"output.name={own.name}-{method}-seed{seed}"]
            equal = load_recipe(path, [*overrides, *changed], vocabulary=vocabulary)
            loaded = equal
            if further := by_method.get(method):
                loaded = load_recipe(path, [*overrides, *changed, *further], vocabulary=vocabulary)
                _check_budget(method, equal.recipe, loaded.recipe)
            runs.append(PlannedRun(method, seed, loaded))
    return runs


def _check_methods(methods: Sequence[str], by_method: Mapping[str, Sequence[str]], vocabulary: Vocabulary) -> None:
    if not methods:
        raise RecipeError("no method is named", where="--methods", fix=f"Known: {', '.join(vocabulary.methods)}.")
    for option, names in (("--methods", methods), ("--for", by_method)):
        for name in names:
            if name not in vocabulary.methods:
                raise RecipeError(f"no such method '{name}'; {did_you_mean(name, vocabulary.methods)}", where=option)
    if unused := sorted(set(by_method) - set(methods)):
        raise RecipeError(f"'{unused[0]}' is not among the methods compared", where="--for", fix="Add it to --methods.")


def _check_budget(method: str, equal: Recipe, own: Recipe) -> None:
    """Make sure that what one method has to itself is how it learns, not what it learns from or how long."""
    chosen = [*equal.remedies.chosen.items(), *own.remedies.chosen.items()]
    shared = {"train": _BUDGET, "method": (), "remedies": [name for name, r in chosen if r.changes_shares]}
    for section in Recipe.model_fields:
        old, new = getattr(equal, section), getattr(own, section)
        for name in shared.get(section, type(old).model_fields):
            if getattr(old, name) != getattr(new, name):
                raise RecipeError(
                    f"'{section}.{name}' for {method} alone would make the comparison unequal",
                    where="--for",
                    fix=f"Set it for every run: {section}.{name}=VALUE without --for.",
                )
    if own.method.name != method:
        raise RecipeError(f"method {method} was turned into '{own.method.name}'", where="--for", fix="Leave it out.")
