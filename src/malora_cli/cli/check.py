"""``malora check``: what a recipe's data amount to, before anything is trained."""

from __future__ import annotations

from typing import Annotated

import typer

from malora_cli.cli._common import FullOption, MeasureOption, OverridesArgument, RecipeArgument, TrustOption


def register(app: typer.Typer) -> None:
    """Add ``malora check``."""
    app.command("check")(check)


def check(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    step: MeasureOption = True,
    full: FullOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    trust: TrustOption = False,
) -> None:
    """State what every task of a recipe brings and gets, and what the longest step costs; train nothing.

    Example: malora check recipes/quickstart.yaml --no-step
    """
    from malora_cli.cli._common import prepare_libraries, read_recipe
    from malora_cli.cli._terminal import result_console, say_json
    from malora_cli.modeling.finding import check_base
    from malora_cli.named import granted

    loaded = read_recipe(recipe, [*(overrides or []), *granted(trust)])
    check_base(loaded.recipe.model)
    prepare_libraries()
    from malora_cli.cli._statement import (
        plain_statement,
        print_cost,
        print_example,
        print_format,
        print_statement,
        print_template,
    )
    from malora_cli.data.statement import rendered, state
    from malora_cli.modeling.device import settled
    from malora_cli.train.materials import gather
    from malora_cli.train.probe import measured

    console = result_console(full=full)
    materials = gather(loaded.recipe)
    statement = state(materials.mixture, materials.packer)
    examples = {
        task.name: rendered(task.train.examples([0], number)[0], materials.tokenizer)
        for number, task in enumerate(materials.tasks[: None if as_json else console.most])
    }
    if as_json:
        cost, model = measured(loaded.recipe, materials) if step else None, settled(loaded).recipe.model
        say_json(plain_statement(statement, cost, model, examples))
        return
    print_statement(statement, console)
    print_format(loaded, console)
    print_template(materials.tokenizer, console)
    for name, parts in examples.items():
        print_example(name, parts, console)
    console.tell_left_out(len(materials.tasks), "first rows")
    if step:
        console.print()
        print_cost(measured(loaded.recipe, materials), statement, console)
