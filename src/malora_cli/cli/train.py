"""``malora train``: train what a recipe asks for."""

from __future__ import annotations

from contextlib import nullcontext
from shlex import join
from typing import TYPE_CHECKING, Annotated

import typer

from malora_cli.cli._common import FullOption, MeasureOption, OverridesArgument, RecipeArgument, TrustOption

if TYPE_CHECKING:
    from malora_cli.recipe import LoadedRecipe


def register(app: typer.Typer) -> None:
    """Add ``malora train``."""
    app.command("train")(train)


def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe, the parameters and the mixture; train nothing.")
    ] = False,
    nproc: Annotated[
        int | None, typer.Option("--nproc", min=1, help="Processes that train on one batch together, as torchrun's.")
    ] = None,
    step: MeasureOption = True,
    full: FullOption = False,
    trust: TrustOption = False,
) -> None:
    """Train a recipe, with the loss of every task shown, into a run folder that is never overwritten.

    Example: malora train recipes/quickstart.yaml train.steps=200 output.name=longer
    """
    from malora_cli.cli._common import interruptible, prepare_libraries, read_recipe, telling_of_moves
    from malora_cli.cli._terminal import result_console, say
    from malora_cli.cli._voice import again_so, begin, progress_console
    from malora_cli.named import granted

    overrides = [*(overrides or []), *granted(trust)]
    loaded = read_recipe(recipe, overrides)
    _check_early(loaded, resume=resume, dry_run=dry_run, several=(nproc or 1) > 1)
    prepare_libraries()
    if nproc is not None and nproc > 1 and not dry_run:
        from malora_cli.train.launch import launch

        flags = {"--resume": resume, "--no-step": not step, "--full": full}
        again = [*again_so(), "train", recipe, *overrides, *(flag for flag, given in flags.items() if given)]
        raise typer.Exit(launch(nproc, again, loaded.recipe.model.device))
    if dry_run:
        from malora_cli.cli._dry_run import print_plan

        print_plan(loaded, result_console(full=full))
        return
    console = progress_console(full=full)
    from malora_cli.cli._statement import print_cost, print_example, print_format, print_statement, print_template
    from malora_cli.data.statement import rendered, state
    from malora_cli.reports import write_report
    from malora_cli.train.materials import Materials
    from malora_cli.train.probe import StepCost
    from malora_cli.train.processes import part, writes
    from malora_cli.train.resuming import grants, run_of
    from malora_cli.train.run import train as run_training
    from malora_cli.train.view import view_for

    def announce(materials: Materials, cost: StepCost | None) -> None:
        statement = state(materials.mixture, materials.packer)
        print_statement(statement, console)
        print_format(loaded, console)
        print_template(materials.tokenizer, console)
        task = materials.tasks[0]
        print_example(task.name, rendered(task.train.examples([0], 0)[0], materials.tokenizer), console)
        console.print()
        if cost is not None:
            print_cost(cost, statement, console)

    with interruptible(run_of(loaded, resume=resume)), telling_of_moves(loaded.recipe) if resume else nullcontext():
        record = run_training(loaded, view_for(console), resume=resume, announce=announce, measure=step)
    if writes():
        begin("writing the report")
        report = write_report(record)
        say(f"run:     {record.path}")
        say(f"adapter: {record.adapter_dir}")
        say(f"report:  {report}")
        say(f"next:    {join(['malora', 'eval', str(record.path), *grants(record)])}")
    part()


def _check_early(loaded: LoadedRecipe, *, resume: bool, dry_run: bool, several: bool) -> None:
    """Refuse what takes no library to refuse; processes of a launcher come to that together, as they begin.

    Raises:
        MaloraError: The base model is not there, the run may not begin in its folder, or settings exclude each other.
    """
    from malora_cli.cli._common import telling_of_moves
    from malora_cli.modeling.finding import check_base
    from malora_cli.train.ranks import world_size
    from malora_cli.train.resuming import check_place, run_of
    from malora_cli.train.surroundings import check_surroundings

    if world_size() > 1:
        return
    if not dry_run:
        if not several:
            check_surroundings(loaded.recipe)
        check_place(run_of(loaded, resume=resume), resume=resume)
    with telling_of_moves(loaded.recipe) if resume else nullcontext():
        check_base(loaded.recipe.model)
