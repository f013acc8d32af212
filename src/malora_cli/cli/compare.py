"""``malora compare``: methods, or runs that exist, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from malora_cli.cli._common import CodeOption, FullOption, OverridesArgument, RecipeArgument, RunsOption, TrustOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from malora_cli.results import EvalResult, RunRecord


def register(app: typer.Typer) -> None:
    """Add ``malora compare`` and its commands."""
    compare = typer.Typer(no_args_is_help=True, help="Compare methods at equal budget, or runs that exist.")
    compare.command("baselines")(baselines)
    compare.command("runs")(runs_that_exist)
    app.add_typer(compare, name="compare")


def baselines(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    methods: Annotated[str, typer.Option(metavar="A,B", help="Methods to compare.")] = "lora,molora,malora",
    seeds: Annotated[str, typer.Option(metavar="N,N", help="Seeds; each method is trained once with each.")] = "0",
    for_method: Annotated[
        list[str] | None,
        typer.Option("--for", metavar="METHOD:KEY=VALUE", help="A setting for one method, such as its learning rate."),
    ] = None,
    allow_code: CodeOption = False,
    full: FullOption = False,
    trust: TrustOption = False,
) -> None:
    """Train and evaluate one recipe under several methods: same data, order and steps, in ordinary run folders.

    The recipe's own method keeps its settings, the others take their defaults. A finished run is not run again, and a
    killed one goes on. Methods have their best learning rates far apart: give each its own by --for.

    Example: malora compare baselines quickstart --methods lora,malora --for lora:train.learning_rate=1e-3
    """
    from malora_cli.cli._common import (
        granted,
        interruptible,
        names_in,
        prepare_libraries,
        recipe_file,
        tell_of_code,
        vocabulary,
    )
    from malora_cli.cli._terminal import result_console, say
    from malora_cli.compare.plan import parse_method_overrides, parse_seeds, plan

    planned = plan(
        recipe_file(recipe),
        [*(overrides or []), *granted(trust)],
        methods=names_in(methods),
        seeds=parse_seeds(seeds),
        by_method=parse_method_overrides(for_method or []),
        vocabulary=vocabulary(),
    )
    tell_of_code(planned[0].loaded)
    prepare_libraries()
    from malora_cli.compare.run import carry_out
    from malora_cli.reports import write_report
    from malora_cli.train.view import view_for

    console = result_console()
    with interruptible():
        evaluated = carry_out(planned, lambda: view_for(console), say, allow_code=allow_code)
    for record, _ in evaluated:
        write_report(record)
    _print(evaluated, full=full)


def runs_that_exist(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders, or their names.")],
    folder: RunsOption = Path("runs"),
    full: FullOption = False,
) -> None:
    """Put finished and evaluated runs side by side.

    Example: malora compare runs quickstart-lora-seed0 quickstart-malora-seed0
    """
    from malora_cli.compare.table import newest_evaluation
    from malora_cli.results import find_run

    records = [find_run(run, folder) for run in runs]
    _print([(record, newest_evaluation(record)) for record in records], full=full)


def _print(evaluated: Sequence[tuple[RunRecord, EvalResult]], *, full: bool) -> None:
    from malora_cli.cli._tables import comparison_table
    from malora_cli.cli._terminal import result_console
    from malora_cli.compare.table import compare

    console = result_console(full=full)
    console.print(comparison_table(compare(evaluated), console.most))
    console.tell_left_out(len(evaluated[0][1].tasks), "tasks")
