"""Table 3 of the paper: MALoRA with one of its parts taken away."""

from __future__ import annotations

from malora_cli.recipe import Recipe

BASELINE = "malora"
_METHODS = (
    BASELINE,
    "malora-fixed-subspace",
    "malora-frozen-coefficients",
    "malora-symmetric",
    "malora-unshared-subspace",
    "malora-decomposed-up",
    "molora",
    "molora-same-init",
)


def contenders(recipe: Recipe) -> dict[str, list[str]]:
    """Every ablation with the settings of the paper, the recipe's own method with those of the recipe."""
    return {name: [] if name == recipe.method.name else [f"method={{name: {name}}}"] for name in _METHODS}
