"""The runs of a comparison: one recipe, with only the method and the seed changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from malora_cli.errors import RecipeError
from malora_cli.recipe import LoadedRecipe, Vocabulary, load_recipe
from malora_cli.registry import did_you_mean

#: Compared when nothing else is asked for.
BASELINES = ("lora", "molora", "malora")


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
    """``"0,1,2"`` as numbers.

    Raises:
        RecipeError: It is something else.
    """
    try:
        return [int(part) for part in text.split(",")]
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
        methods: Names of the methods.
        seeds: Values of ``train.seed``.
        by_method: Further overrides for single methods, such as the learning rate that suits each.
        vocabulary: The names a recipe may use.

    Raises:
        RecipeError: The recipe is wrong, or a method is not known.
    """
    for name in [*methods, *by_method]:
        if name not in vocabulary.methods:
            raise RecipeError(f"no such method '{name}'; {did_you_mean(name, vocabulary.methods)}", where="--methods")
    if unused := sorted(set(by_method) - set(methods)):
        raise RecipeError(f"'{unused[0]}' is not among the methods compared", where="--for")
    own = load_recipe(path, overrides, vocabulary=vocabulary)
    targets = own.recipe.method.target_modules
    runs = []
    for method in methods:
        for seed in seeds:
            changed = [] if method == own.recipe.method.name else [f"method={{name: {method}}}"]
            if changed and targets is not None:
                changed.append(f"method.target_modules=[{', '.join(targets)}]")
            changed += [f"train.seed={seed}", f"output.name={own.name}-{method}-seed{seed}"]
            loaded = load_recipe(path, [*overrides, *changed, *by_method.get(method, ())], vocabulary=vocabulary)
            runs.append(PlannedRun(method, seed, loaded))
    return runs
