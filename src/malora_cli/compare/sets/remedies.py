"""Remedies against task interference with the recipe's own method, beside other ways of weighting the tasks."""

from __future__ import annotations

from malora_cli.recipe import Recipe

BASELINE = "plain"
#: As in Raffel et al. 2020 (T5), who mix with it.
_TEMPERATURE = 2


def contenders(recipe: Recipe) -> dict[str, list[str]]:
    """Every remedy alone. Weights of tasks are left as they are where the recipe spells them out."""
    found = {BASELINE: ["remedies={}"]}
    found |= {name: [f"remedies={{{name}: {{}}}}"] for name in ("uncertainty", "bandit", "pcgrad")}
    if recipe.mix.weighting != "explicit":
        ways = {"uniform": ["mix.weighting=uniform"], "proportional": ["mix.weighting=proportional"]}
        ways["temperature"] = [f"mix.temperature={_TEMPERATURE}", "mix.weighting=temperature"]
        if recipe.mix.weighting != "temperature":
            found |= {name: ["remedies={}", *way] for name, way in ways.items() if name != recipe.mix.weighting}
    return found
