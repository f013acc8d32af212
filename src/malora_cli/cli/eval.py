"""``malora eval``: every task under the base model and under the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from malora_cli.cli._common import FullOption, MovedArgument, RunArgument, RunsOption, StepOption, TrustOption

if TYPE_CHECKING:
    from malora_cli.results import EvalResult


def register(app: typer.Typer) -> None:
    """Add ``malora eval``."""
    app.command("eval")(evaluate)


def evaluate(
    run: RunArgument = None,
    moved: MovedArgument = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="A,B", help="Tasks to evaluate; all of the run's when left out.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Held-out rows a task, at random; the recipe's when left out."),
    ] = None,
    step: StepOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to; the run's eval/ and report when left out.")
    ] = None,
    runs: RunsOption = Path("runs"),
    full: FullOption = False,
    trust: TrustOption = False,
) -> None:
    """Score a run on its held-out rows, base model beside adapter, by task and domain.

    Example: malora eval runs/quickstart --tasks chain_sum,words_sorted --limit 20
    """
    from malora_cli.cli._common import find_and_tell, names_in, recipe_of_run, telling_of_moves
    from malora_cli.cli._terminal import result_console, say

    record = find_and_tell(run, runs)
    recipe = recipe_of_run(record, moved or [], trust=trust)
    from malora_cli.cli._tables import evaluation_table
    from malora_cli.evals.evaluate import evaluate_run
    from malora_cli.reports import check_writable, write_report

    if out is None:
        check_writable(record)
    console = result_console(full=full)
    with telling_of_moves(recipe), console.status("loading") as status:

        def show(result: EvalResult) -> None:
            status.stop()
            console.print(evaluation_table(result, console.most))
            console.tell_left_out(len(result.tasks), "tasks")

        evaluate_run(
            record,
            recipe,
            tasks=names_in(tasks) if tasks is not None else None,
            limit=limit,
            step=step,
            out=out,
            on_task=lambda model, task: status.update(f"{model}: {task}"),
            on_result=show,
        )
    say(f"results: {out or record.eval_dir}")
    if out is None:
        say(f"report:  {write_report(record)}")
