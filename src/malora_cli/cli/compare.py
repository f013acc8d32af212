"""``malora compare``: methods, or runs that exist, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from malora_cli.characters import plural
from malora_cli.cli import _completion
from malora_cli.cli._common import CodeOption, FullOption, OverridesArgument, RecipeArgument, RunsOption, TrustOption

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from malora_cli.compare.asked import Asked
    from malora_cli.compare.plan import Plan
    from malora_cli.compare.planner import Planner
    from malora_cli.results.comparison import Endpoint

#: What ``--methods`` says.
_METHODS = "Methods to compare; NAME=METHOD adds one again under a name for --for."
#: Sets of contenders, each with its command.
_SETS = {
    "ablations": "MALoRA without one of its parts (the paper's Table 3).",
    "ranks": "MALoRA and MoLoRA at four ranks each (the paper's Table 11).",
    "remedies": "Remedies against task interference with the recipe's method, and other weights of the tasks.",
}


def register(app: typer.Typer) -> None:
    """Add ``malora compare`` and its commands."""
    compare = typer.Typer(no_args_is_help=True, help="Compare methods at equal budget, or runs that exist.")
    compare.command("baselines")(baselines)
    for name, what in _SETS.items():
        compare.command(name)(_of_set(name, what))
    compare.command("plan")(plan)
    compare.command("runs")(runs_that_exist)
    app.add_typer(compare, name="compare")


SeedsOption = Annotated[
    str, typer.Option("--seeds", metavar="N,N", help="Seeds; each method is trained once with each.")
]
TuneOption = Annotated[
    str,
    typer.Option(
        "--tune",
        metavar="HOW",
        help="Learning rates by validation loss: auto tries four or more for each, lr=1e-4,3e-4,1e-3 these, none takes "
        "those of the recipe.",
    ),
]
BaselineOption = Annotated[
    str | None, typer.Option("--baseline", metavar="NAME", help="Whom the others are compared with.")
]
EndpointOption = Annotated[
    Literal["loss", "score"], typer.Option("--endpoint", help="What decides: test losses, or scores; mean over tasks.")
]
MarginOption = Annotated[float, typer.Option("--margin", min=0, help="Differences of the endpoint that count as none.")]
ForOption = Annotated[
    list[str] | None,
    typer.Option("--for", metavar="METHOD:KEY=VALUE", help="A setting for one method, such as its rank."),
]
MatchOption = Annotated[
    Literal["parameters", "none"],
    typer.Option("--match", help="parameters: give each the rank at which it is of the baseline's size, within 3%."),
]
JobsOption = Annotated[
    str, typer.Option("--jobs", metavar="auto|N", help="Runs trained at a time; auto: one a GPU, one in all on a CPU.")
]
OnOption = Annotated[
    Literal["ray"] | None,
    typer.Option("--on", help="Train every run as a task of Ray: on the cluster of RAY_ADDRESS, or on this machine."),
]
CpusOption = Annotated[int, typer.Option("--cpus-per-run", min=1, help="Cores for each run, with --on ray.")]
SingleOption = Annotated[
    bool, typer.Option("--single-task", help="Train the baseline on every task alone as well: shows the seesaw effect.")
]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Only show what would be run.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print comparison.json, or what would be run, as JSON.")]


def baselines(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    methods: Annotated[
        str, typer.Option(metavar="A,B", help=_METHODS, autocompletion=_completion.methods)
    ] = "lora,molora,malora",
    seeds: SeedsOption = "0,1,2",
    tune: TuneOption = "auto",
    baseline: BaselineOption = None,
    endpoint: EndpointOption = "loss",
    margin: MarginOption = 0.01,
    match: MatchOption = "none",
    single_task: SingleOption = False,
    for_method: ForOption = None,
    jobs: JobsOption = "auto",
    on: OnOption = None,
    cpus_per_run: CpusOption = 1,
    dry_run: DryOption = False,
    allow_code: CodeOption = False,
    as_json: JsonOption = False,
    trust: TrustOption = False,
) -> None:
    """Which method is best: same data, order and steps, each at its own learning rate, with several seeds.

    The recipe's own method keeps its settings, the others take their defaults. Runs are ordinary run folders: finished
    ones are kept, killed ones go on, and where one fails the others are trained. What may be concluded is printed and
    kept in RUNS/NAME.compare, with a page.

    Example: malora compare baselines quickstart --methods lora,malora --seeds 0,1,2
    """
    from malora_cli.cli._common import names_in

    asked = _asked(
        recipe, overrides, seeds, tune, baseline, endpoint, margin, for_method, match, single_task, trust=trust
    )
    _carry_out(
        asked,
        lambda: asked.of_methods(names_in(methods)),
        jobs=jobs,
        cpus_on_ray=cpus_per_run if on else None,
        dry_run=dry_run,
        allow_code=allow_code,
        as_json=as_json,
    )


def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    phase: Annotated[
        Literal["tune", "report"], typer.Option(help="Trials of the learning rates, or the reported runs.")
    ] = "tune",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the lines here, not on standard output.")
    ] = None,
    methods: Annotated[str, typer.Option(metavar="A,B", help=_METHODS)] = "lora,molora,malora",
    seeds: SeedsOption = "0,1,2",
    tune: TuneOption = "auto",
    baseline: BaselineOption = None,
    endpoint: EndpointOption = "loss",
    margin: MarginOption = 0.01,
    match: MatchOption = "none",
    single_task: SingleOption = False,
    for_method: ForOption = None,
    allow_code: CodeOption = False,
    trust: TrustOption = False,
) -> None:
    """Print what is missing of a comparison, one command a line, for Slurm arrays and the like.

    Lines may run in any order, on machines that share this folder, which they are run from. Print them again until
    nothing is missing, since grids go on where a best rate lies at an edge; then `malora compare baselines` with the
    same options reads what they made.

    Example: malora compare plan quickstart --phase tune --out jobs.txt
    """
    from malora_cli.cli._common import names_in, prepare_libraries
    from malora_cli.cli._comparison import missing_lines
    from malora_cli.cli._terminal import say
    from malora_cli.compare.asked import matched
    from malora_cli.results import write_text

    asked = _asked(
        recipe, overrides, seeds, tune, baseline, endpoint, margin, for_method, match, single_task, trust=trust
    )
    planner, planned = asked.of_methods(names_in(methods))
    prepare_libraries()
    lines = missing_lines(matched(planner, planned), planned, phase, allow_code=allow_code)
    if out is None:
        for line in lines:
            say(line)
    else:
        write_text(out, "".join(f"{line}\n" for line in lines))
    say(f"{plural(len(lines), 'line')} of phase {phase}", err=True)


def _of_set(name: str, what: str) -> Callable[..., None]:
    """The command of a set of contenders."""

    def compare_set(
        recipe: RecipeArgument,
        overrides: OverridesArgument = None,
        seeds: SeedsOption = "0,1,2",
        tune: TuneOption = "auto",
        baseline: BaselineOption = None,
        endpoint: EndpointOption = "loss",
        margin: MarginOption = 0.01,
        for_method: ForOption = None,
        jobs: JobsOption = "auto",
        on: OnOption = None,
        cpus_per_run: CpusOption = 1,
        dry_run: DryOption = False,
        allow_code: CodeOption = False,
        as_json: JsonOption = False,
        trust: TrustOption = False,
    ) -> None:
        asked = _asked(recipe, overrides, seeds, tune, baseline, endpoint, margin, for_method, trust=trust)
        _carry_out(
            asked,
            lambda: asked.of_set(name),
            jobs=jobs,
            cpus_on_ray=cpus_per_run if on else None,
            dry_run=dry_run,
            allow_code=allow_code,
            as_json=as_json,
        )

    compare_set.__doc__ = f"{what}\n\n    Example: malora compare {name} quickstart --seeds 0,1,2\n    "
    return compare_set


def _asked(
    recipe: str,
    overrides: Sequence[str] | None,
    seeds: str,
    tune: str,
    baseline: str | None,
    endpoint: Endpoint,
    margin: float,
    for_method: Sequence[str] | None,
    match: Literal["parameters", "none"] = "none",
    single_task: bool = False,
    *,
    trust: bool,
) -> Asked:
    from malora_cli.compare.asked import Asked
    from malora_cli.named import granted, recipe_file

    settings = [*(overrides or []), *granted(trust)]
    return Asked(
        recipe_file(recipe), settings, seeds, tune, baseline, endpoint, margin, for_method or [], match, single_task
    )


def _carry_out(
    asked: Asked,
    plan: Callable[[], tuple[Planner, Plan]],
    *,
    jobs: str,
    cpus_on_ray: int | None,
    dry_run: bool,
    allow_code: bool,
    as_json: bool,
) -> None:
    """Train and evaluate what is missing, and say what came of it; exit code 1 where a run failed."""
    from malora_cli.cli._common import interruptible, prepare_libraries, tell_of_code
    from malora_cli.cli._terminal import say
    from malora_cli.cli._voice import Volume, aside, progress_console, volume
    from malora_cli.compare.asked import matched
    from malora_cli.compare.jobs import check_jobs, side_by_side
    from malora_cli.modeling.finding import check_base

    check_jobs(jobs, cpus_on_ray)
    check_base(asked.model)
    planner, planned = plan()
    prepare_libraries()
    from malora_cli.cli._comparison import print_comparison, print_plan

    tell_of_code(planner.own)
    planner = matched(planner, planned)
    if dry_run:
        print_plan(planner, planned, as_json=as_json)
        return
    from malora_cli.evals.choosing import check_code

    check_code(planner.own.recipe.mix, allowed=allow_code)
    from malora_cli.compare.asked import carried_out
    from malora_cli.compare.run import Crew
    from malora_cli.reports import write_comparison
    from malora_cli.train.view import view_for

    console = progress_console(err=as_json)
    with interruptible():
        tell = aside if as_json or volume() is Volume.QUIET else say
        jobs_there = side_by_side(jobs, cpus_on_ray, tell, asked.model.device)
        crew = Crew(lambda: view_for(console), tell, allow_code, jobs_there)
        comparison = carried_out(planner, planned, crew)
    print_comparison(comparison, as_json=as_json)
    if not as_json:
        say(f"comparison: {planner.folder / 'comparison.json'}")
    say(f"page:       {write_comparison(planner.folder, comparison, planner.folder.parent)}", err=as_json)
    if comparison.failures:
        raise typer.Exit(1)


def runs_that_exist(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders, or their names.")],
    folder: RunsOption = Path("runs"),
    baseline: BaselineOption = None,
    endpoint: EndpointOption = "loss",
    margin: MarginOption = 0.01,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Write comparison.json, comparison.csv and the page there."),
    ] = None,
    full: FullOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print comparison.json instead of the tables.")] = False,
) -> None:
    """Put finished and evaluated runs side by side, and say what they allow to conclude of their methods.

    There are verdicts where runs differ in method, seed and learning rate alone. Rates are as they are, not tuned.

    Example: malora compare runs quickstart-lora-seed0 quickstart-malora-seed0
    """
    from malora_cli.compare.table import compare, newest_evaluation
    from malora_cli.errors import RunError
    from malora_cli.results import find_run

    records = [find_run(run, folder) for run in runs]
    evaluated = [(record, newest_evaluation(record)) for record in records]

    from malora_cli.cli._comparison import print_comparison
    from malora_cli.cli._tables import comparison_table
    from malora_cli.cli._terminal import result_console, say
    from malora_cli.compare.existing import comparison_of
    from malora_cli.compare.plan import Plan

    if out is not None and Plan.path(out).is_file():
        raise RunError("it holds a comparison with a plan", where=str(out), fix="Name another folder.")
    table = compare(evaluated)
    comparison, why = None, ""
    try:
        comparison = comparison_of(records, baseline, endpoint, margin)
    except RunError as error:
        if as_json or out is not None:
            raise
        why = str(error)
    if not as_json:
        console = result_console(full=full)
        console.print(comparison_table(table, console.most))
        console.tell_left_out(len(evaluated[0][1].tasks), "tasks")
    if comparison is None:
        say(f"no verdicts: {why}")
        return
    print_comparison(comparison, as_json=as_json)
    if out is not None:
        from malora_cli.reports import write_comparison

        comparison.save(out)
        places = {record.path.absolute().parent for record in records}
        page = write_comparison(out, comparison, places.pop() if len(places) == 1 else None)
        say(f"page:       {page}", err=as_json)
