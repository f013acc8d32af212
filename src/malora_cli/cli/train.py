"""``malora train``: train what a recipe asks for."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add ``malora train``."""
    app.command("train")(train)


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe file, or the name of a shipped one.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings over the recipe's.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe, the parameters and the mixture; train nothing.")
    ] = False,
) -> None:
    """Train a recipe, with the loss of every task shown, into a run folder that is never overwritten.

    Example: malora train recipes/quickstart.yaml train.steps=200 output.name=longer
    """
    from malora_cli.cli._common import prepare_libraries, read_recipe

    prepare_libraries()
    loaded = read_recipe(recipe, overrides or [])
    from rich.console import Console

    console = Console()
    if dry_run:
        from malora_cli.cli._dry_run import print_plan

        print_plan(loaded, console)
        return
    from malora_cli.reports import write_report
    from malora_cli.train.run import train as run_training
    from malora_cli.train.view import view_for

    record = run_training(loaded, view_for(console), resume=resume)
    typer.echo(f"run:     {record.path}")
    typer.echo(f"adapter: {record.adapter_dir}")
    typer.echo(f"report:  {write_report(record)}")
    typer.echo(f"next:    malora eval {record.path}")
