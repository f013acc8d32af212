"""``malora eval``: every task under a model, beside the base model or another evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from malora_cli.cli import _completion
from malora_cli.cli._common import CodeOption, FullOption, RunsOption, StepOption, TrustOption

if TYPE_CHECKING:
    from malora_cli.results import EvalResult


def register(app: typer.Typer) -> None:
    """Add ``malora eval``."""
    app.command("eval")(evaluate)


def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN|MODEL]",
            help="Run folder, or its name under --runs; default: the newest. Or, with --mix, a model: a short name, "
            "hub id, folder, GGUF file or exported adapter.",
            autocompletion=_completion.runs,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings. For a model, any of the recipe's; for a run eval.*, model.device, and model.base or mix if "
            "these were moved.",
            show_default=False,
            autocompletion=_completion.overrides,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Tasks, domain:NAME or lm_eval:NAME; default: all of the mix.",
            autocompletion=_completion.tasks,
        ),
    ] = None,
    mix: Annotated[
        str | None, typer.Option(metavar="MIX", help="Take the tasks from this mix: a YAML file or a shipped mix.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="At most N random rows a task; default: the recipe's eval.rows."),
    ] = None,
    shots: Annotated[
        int, typer.Option(min=0, metavar="K", help="Few-shot: K solved training rows before each prompt of the base.")
    ] = 0,
    against: Annotated[
        str | None,
        typer.Option(metavar="base|RUN|FILE", help="Compare with the base model, a run or an evaluation's JSON."),
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Exit with code 1 if a task is significantly worse than --against.")
    ] = False,
    allow_code: CodeOption = False,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Score stored answers again, without loading the model.")
    ] = False,
    split: Annotated[Literal["test", "validation"], typer.Option(help="Rows to score.")] = "test",
    step: StepOption = None,
    batch_tokens: Annotated[
        str | None,
        typer.Option(metavar="auto|N", help="Most tokens in a batch; default: the recipe's eval.batch_tokens."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")] = False,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the table as CSV.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write here instead of the run's eval/; its report stays as it is."),
    ] = None,
    runs: RunsOption = Path("runs"),
    full: FullOption = False,
    trust: TrustOption = False,
) -> None:
    """Score a run or a model on held-out rows, by task and domain, with 95% confidence intervals.

    Example: malora eval runs/quickstart --tasks chain_sum,words_sorted --limit 20
    """
    from malora_cli.cli import _evaluation as ways
    from malora_cli.cli._common import interruptible, names_in, prepare_libraries, telling_of_moves
    from malora_cli.cli._terminal import result_console, say
    from malora_cli.cli._voice import progress_console

    record = ways.run_named(run, runs, mix, err=json_)
    overrides = [*(settings or []), *([f"eval.batch_tokens={batch_tokens}"] if batch_tokens is not None else [])]
    recipe = ways.recipe_named(record, run, overrides, mix=mix, trust=trust)
    folder = out or ways.folder_for(record, recipe, mix, runs)
    names = names_in(tasks) if tasks is not None else None
    other = ways.evaluation_named(against, runs, names)
    ways.check_wanted(recipe, record, other, gate=gate, csv=csv)
    with telling_of_moves(recipe):
        ways.check_subject(recipe, record, names, step=step, allow_code=allow_code)
    prepare_libraries()
    from malora_cli.evals.evaluate import Wanted, evaluate_model, evaluate_run
    from malora_cli.reports import check_writable, write_report

    reported = record if record is not None and out is None and mix is None else None
    if reported is not None:
        check_writable(reported)
    console = result_console(full=full)
    if json_:
        console.most = None

    def show(result: EvalResult) -> None:
        progress.end()
        if json_:
            console.out(result.model_dump_json(indent=2), highlight=False)
        else:
            ways.print_evaluation(result, console)

    with interruptible(), telling_of_moves(recipe), ways.progress_on(progress_console()) as progress:
        wanted = Wanted(
            tasks=names,
            limit=limit,
            split=split,
            shots=shots,
            against=other,
            rescore=rescore,
            allow_code=allow_code,
            progress=progress,
            on_result=show,
        )
        if record is not None:
            result = evaluate_run(record, recipe, wanted, step=step, mix=mix, out=folder)
        else:
            result = evaluate_model(recipe, wanted, mix=str(mix), out=folder)
    if csv is not None:
        ways.write_csv(result, csv)
    say(f"results: {folder}", err=json_)
    if reported is not None:
        say(f"report:  {write_report(reported)}", err=json_)
    if gate:
        line, passed = ways.gate_line(result)
        say(line, err=json_)
        raise typer.Exit(0 if passed else 1)
