"""``malora compare``: methods, or runs that exist, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    seeds: Annotated[str, typer.Option(metavar="N,N", help="Seeds; each method is trained once with each.")] = "0,1,2",
    tune: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="Learning rates by validation loss: auto tries four or more for each method, lr=1e-4,3e-4,1e-3 these, "
            "none takes those of the recipe.",
        ),
    ] = "auto",
    baseline: Annotated[
        str | None, typer.Option(metavar="METHOD", help="Whom the others are compared with; the first, if left out.")
    ] = None,
    endpoint: Annotated[
        Literal["loss", "score"], typer.Option(help="What decides: test losses, or scores; a mean over tasks.")
    ] = "loss",
    margin: Annotated[float, typer.Option(min=0, help="Differences of the endpoint that count as none.")] = 0.01,
    for_method: Annotated[
        list[str] | None,
        typer.Option("--for", metavar="METHOD:KEY=VALUE", help="A setting for one method, such as its rank."),
    ] = None,
    allow_code: CodeOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print comparison.json instead of the table.")] = False,
    trust: TrustOption = False,
) -> None:
    """Which method is best: same data, order and steps, each at its own learning rate, with several seeds.

    The recipe's own method keeps its settings, the others take their defaults. Runs are ordinary run folders: finished
    ones are kept, killed ones go on, and where one fails the others are trained. What may be concluded is printed and
    kept in RUNS/NAME.compare, with a page.

    Example: malora compare baselines quickstart --methods lora,malora --seeds 0,1,2
    """
    from malora_cli.cli._common import granted, interruptible, names_in, prepare_libraries, recipe_file, tell_of_code
    from malora_cli.cli._comparison import planned, print_comparison
    from malora_cli.cli._terminal import error_console, result_console, say

    planner, plan = planned(
        recipe_file(recipe),
        [*(overrides or []), *granted(trust)],
        methods=names_in(methods),
        seeds=seeds,
        tune=tune,
        baseline=baseline,
        endpoint=endpoint,
        margin=margin,
        for_method=for_method or [],
    )
    tell_of_code(planner.own)
    prepare_libraries()
    from malora_cli.compare.baselines import Study
    from malora_cli.compare.run import Crew
    from malora_cli.reports import write_report
    from malora_cli.train.view import view_for

    console = error_console() if as_json else result_console()
    with interruptible():
        crew = Crew(lambda: view_for(console), lambda line: say(line, err=as_json), allow_code=allow_code)
        comparison, evaluated = Study(planner, plan).carried_out(crew)
    for it in evaluated:
        write_report(it.record)
    print_comparison(comparison, planner.folder, as_json=as_json)
    if comparison.failures:
        raise typer.Exit(1)


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
