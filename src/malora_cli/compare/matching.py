"""Methods of equal size: the rank at which each has as many trainable parameters as the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, floor, lcm
from typing import Any, cast

from malora_cli.adapters.methods._base import AdapterSettings
from malora_cli.compare.planner import Planner
from malora_cli.errors import RecipeError
from malora_cli.modeling import count_parameters, empty_base, resolve_base, wrap
from malora_cli.recipe import Recipe

#: Largest deviation from the baseline's parameters.
TOLERANCE = 0.03


@dataclass(frozen=True)
class Matched:
    """The rank of one method that comes nearest to a number of parameters.

    Args:
        overrides: What sets it in a recipe.
        parameters: That it has then.
    """

    overrides: list[str]
    parameters: int


def matched_ranks(planner: Planner, methods: Sequence[str], baseline: str) -> dict[str, Matched]:
    """The rank of every method but the baseline at which it is of the baseline's size; one that was set is kept.

    Args:
        planner: Makes the recipes.
        methods: What is compared.
        baseline: Whose size the others take.

    Raises:
        RecipeError: No rank comes within 3%; the two nearest are named.
        ModelError: The base model cannot be had.
    """
    counted = counting(planner.own.recipe)
    goal = counted(planner.run(baseline, 0).loaded.recipe)
    found = {}
    for method in methods:
        if method == baseline or planner.sets(method, "r"):
            continue
        recipe = planner.run(method, 0).loaded.recipe
        parts = _parts(cast(AdapterSettings, recipe.method))
        found[method] = _nearest(method, recipe.method.model_dump(), goal, partial(counted, recipe), parts)
    return found


def counting(recipe: Recipe) -> Callable[..., int]:
    """What counts the trainable parameters of a recipe's method, or of another, on the base model of this one."""
    base = resolve_base(recipe.model)

    def counted(of: Recipe, settings: Mapping[str, Any] | None = None) -> int:
        method = of.method if settings is None else type(of.method).model_validate(dict(settings))
        return count_parameters(wrap(empty_base(base, of.model), cast(AdapterSettings, method))).trainable

    return counted


def _parts(method: AdapterSettings) -> int:
    """What the rank of a subspace is a multiple of: experts that have one each divide it among themselves."""
    if method.variant.get("subspace") != "own":
        return 1
    experts = method.model_dump()["num_experts"]
    return lcm(*([experts] if isinstance(experts, int) else experts))


def _nearest(
    method: str, settings: Mapping[str, Any], goal: int, count: Callable[[Mapping[str, Any]], int], parts: int
) -> Matched:
    """Try ranks, of which more have more parameters; where experts share a subspace, its rank makes up for the rest."""
    if "r" not in settings:
        raise RecipeError(f"{method} has no rank to match its size by", where="--match", fix="Leave it out.")

    def size(changed: Mapping[str, float]) -> int:
        return count({**settings, **changed})

    # Of a rank twice as large there is twice as much, but for routers: two sizes say where the goal lies.
    rank = int(settings["r"])
    own, double = (size(_of_rank(settings, times * rank, parts)) for times in (1, 2))
    guess = rank + (goal - own) * rank / (double - own)
    near = [_of_rank(settings, max(1, one), parts) for one in (floor(guess), ceil(guess))]
    sized = [(changed, size(changed)) for changed in near]
    sized += [
        (better, size(better)) for changed, has in sized for better in _other_subspace(changed, has, goal, size, parts)
    ]
    changed, parameters = min(sized, key=lambda one: abs(one[1] - goal))
    if abs(parameters - goal) > TOLERANCE * goal:
        told = " and ".join(f"rank {tried['r']} with {has:,}" for tried, has in sized[:2])
        raise RecipeError(
            f"no rank of {method} comes within {TOLERANCE:.0%} of the {goal:,} trainable parameters of the baseline "
            f"(nearest: {told})",
            where="--match",
            fix=f"Let the others match it: --baseline {method}.",
        )
    return Matched([f"method.{name}={value}" for name, value in changed.items()], parameters)


def _other_subspace(
    changed: Mapping[str, float], has: int, goal: int, size: Callable[[Mapping[str, float]], int], parts: int
) -> list[dict[str, float]]:
    """The same rank with the subspace that comes nearest to the goal; the size is linear in its rank."""
    if "subspace_rank" not in changed:
        return []
    rank = int(changed["subspace_rank"])
    step = size({**changed, "subspace_rank": rank + parts}) - has
    wanted = rank + parts * (goal - has) / step
    return [{**changed, "subspace_rank": _subspace(wanted, int(changed["r"]), parts)}]


def _subspace(wanted: float, r: int, parts: int) -> int:
    """The nearest rank that a subspace may have: that of an expert at least, or a multiple where it is divided."""
    return max(r, round(wanted)) if parts == 1 else parts * max(1, round(wanted / parts))


def _of_rank(settings: Mapping[str, Any], rank: int, parts: int) -> dict[str, float]:
    """The same method with another rank: its scale stays, and a shared subspace grows with it."""
    power = 0.5 if settings["name"] == "rslora" else 1  # which divides by the square root of its rank
    found: dict[str, float] = {"r": rank, "lora_alpha": settings["lora_alpha"] * (rank / settings["r"]) ** power}
    if "subspace_rank" in settings:
        found["subspace_rank"] = _subspace(settings["subspace_rank"] * rank / settings["r"], rank, parts)
    return found


def parameters_of(planner: Planner, methods: Sequence[str]) -> dict[str, int]:
    """Trainable parameters of every method, without weights.

    Raises:
        MaloraError: The base model or a method's linears are not there.
    """
    counted = counting(planner.own.recipe)
    return {method: counted(planner.run(method, 0).loaded.recipe) for method in methods}
