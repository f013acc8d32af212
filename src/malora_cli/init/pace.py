"""How many steps fit into some minutes, from a step that is measured."""

from __future__ import annotations

from pathlib import Path

from malora_cli.data.statement import state
from malora_cli.named import load_named
from malora_cli.projects import Noted
from malora_cli.train.materials import gather
from malora_cli.train.probe import measured

#: How often the rows are gone through at most: beyond that a model learns them by heart.
_PASSES = 3


def steps_in(minutes: float, recipe: Path) -> Noted:
    """Steps that a recipe of one epoch can train in a time, and the reason for the number.

    Args:
        minutes: Of training, evaluations aside.
        recipe: The recipe.

    Raises:
        MaloraError: Rows or the model cannot be had, or memory does not suffice for a step.
    """
    settings = load_named(recipe).recipe
    materials = gather(settings)
    epoch = state(materials.mixture, materials.packer)
    cost = measured(settings, materials)
    fitting = max(1, int(60 * minutes / cost.training_seconds(epoch.step_tokens)))
    if fitting > (most := _PASSES * epoch.steps):
        return Noted(most, f"{_PASSES} epochs, which take less than {minutes:g} min")
    pace = cost.tokens / cost.seconds
    return Noted(fitting, f"{minutes:g} min at {pace:,.0f} tokens/s, measured here; {fitting / epoch.steps:.2g} epochs")
