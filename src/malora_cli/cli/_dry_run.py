"""What ``malora train --dry-run`` prints."""

from __future__ import annotations

import json
from typing import Any

from rich.text import Text

from malora_cli.cli._statement import print_statement
from malora_cli.cli._terminal import SafeConsole, plain_table
from malora_cli.data.statement import state
from malora_cli.modeling import count_parameters, empty_base, parameter_table, wrap
from malora_cli.modeling.device import settled
from malora_cli.recipe import LoadedRecipe
from malora_cli.recipe.loading import leaves
from malora_cli.train.materials import gather


def print_plan(loaded: LoadedRecipe, console: SafeConsole) -> None:
    """Print the resolved recipe with where each value came from, the parameter table and the mixture.

    Raises:
        MaloraError: What training would stop at.
    """
    loaded = settled(loaded)
    recipe, materials = loaded.recipe, gather(loaded.recipe)
    model = wrap(empty_base(materials.base, recipe.model), recipe.method)  # type: ignore[arg-type]
    values = plain_table(("setting", "value", "from"), title="Recipe")
    settings = recipe.model_dump(mode="json")
    tasks = settings["mix"]["tasks"]
    settings["mix"]["tasks"] = dict(console.start(tasks.items()))
    for keys, value in leaves(settings):
        path = ".".join(keys)
        values.add_row(Text(path), Text(_spelled(value)), Text(loaded.provenance.get(path, ""), style="dim"))
    console.print_table(values)
    console.tell_left_out(len(tasks), "tasks with their settings")

    parameters = plain_table(("target",), ("modules", "trainable"), title="\nTrainable parameters")
    for target, (modules, count) in parameter_table(model).items():
        parameters.add_row(Text(target), str(modules), f"{count:,}")
    total = count_parameters(model)
    parameters.add_row("all", "", f"{total.trainable:,}")
    console.print(parameters)
    console.print(f"{total.percent:.2f}% of {total.base + total.trainable:,} parameters", highlight=False)

    console.print()
    print_statement(state(materials.mixture, materials.packer), console)


def _spelled(value: Any) -> str:
    """A value as a recipe spells it: null and true, not None and True."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
