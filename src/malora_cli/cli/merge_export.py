"""``malora merge-export``: take a run elsewhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from malora_cli.characters import plural
from malora_cli.cli._common import MovedArgument, RunArgument, RunsOption, StepOption, TrustOption

if TYPE_CHECKING:
    from malora_cli.export.plan import Plan
    from malora_cli.export.request import Exported, Request


class Target(StrEnum):
    """What can be exported."""

    ADAPTER = "adapter"
    LORA = "lora"
    DENSE = "dense"
    BUNDLE = "bundle"


class Dtype(StrEnum):
    """Number formats."""

    F32 = "f32"
    BF16 = "bf16"
    F16 = "f16"
    Q8_0 = "q8_0"


class Onto(StrEnum):
    """Weights of a quantised base."""

    QUANTISED = "quantised"
    ORIGINAL = "original"


def register(app: typer.Typer) -> None:
    """Add ``malora merge-export``."""
    app.command("merge-export")(merge_export)


def merge_export(
    context: typer.Context,
    run: RunArgument = None,
    moved: MovedArgument = None,
    to: Annotated[
        Target,
        typer.Option(
            help="adapter: as trained, in PEFT's format. lora: a LoRA for fixed gates, for plain PEFT and servers. "
            "dense: the whole model with that LoRA added. "
            "bundle: the whole model with its routed experts, for transformers."
        ),
    ] = Target.ADAPTER,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="NAME", help="LoRAs: peft (default), gguf or mlx. Whole models: hf (default) or gguf."
        ),
    ] = None,
    gates: Annotated[
        str | None,
        typer.Option(
            metavar="GATES",
            help="fit (the default): nearest to the routed mixture; fit:task:NAME, fit:domain:NAME on these rows. "
            "Gates held fixed: mix, task:NAME, domain:NAME, task:A=0.7,task:B=0.3, uniform. "
            "each or fit:each: a LoRA a task.",
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="A LoRA of a lower rank than the exact one.")
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Number format to write; default: what there is. q8_0 is for GGUF.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to; under the run's export/ when left out.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the export calls its base model, such as a hub id.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rows a task to measure gates and losses on.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Load it in a fresh process and compare the logits.")
    ] = True,
    accept_loss: Annotated[
        float | None,
        typer.Option(metavar="NATS", help="Most that fixed gates may cost; default: not worse than the base model."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that is there already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written; load no weights.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written and measured as JSON.")] = False,
    onto: Annotated[
        Onto | None,
        typer.Option(help="Of a run on a base in 4 or 8 bits: which weights the export is for; default: quantised."),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Also send it to the hub, into a private repository."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository of the hub public.")] = False,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Check an export, or any LoRA in PEFT's format: is it unchanged, and which runtimes load it? "
            "Takes no RUN; the exit code is 1 where one does not load a LoRA.",
        ),
    ] = None,
    step: StepOption = None,
    runs: RunsOption = Path("runs"),
    trust: TrustOption = False,
) -> None:
    """Export a run. A LoRA with fixed gates is exact but for the routing; what that costs each task is measured.

    Example: malora merge-export runs/quickstart --to lora --gates task:chain_sum
    """
    if check is not None:
        from malora_cli.cli._export_check import check_export

        given = [param.opts[0] for param in context.command.params if _is_given(context, param.name or "")]
        given = [name.upper() if name.islower() and name.isalpha() else name for name in given]
        raise typer.Exit(check_export(check, given, as_json=as_json))
    from malora_cli.cli._common import find_and_tell, prepare_libraries, recipe_of_run, telling_of_moves
    from malora_cli.cli._voice import begin
    from malora_cli.export.plan import Plan  # which needs no torch
    from malora_cli.export.request import Request

    request = Request(
        to=to.value,
        format=form,
        gates=gates,
        rank=rank,
        dtype=None if dtype is None else dtype.value,
        base=base,
        rows=rows,
        step=step,
        verify=verify,
        accept_loss=accept_loss,
        force=force,
        onto=None if onto is None else onto.value,
        push=push,
        public=public,
    )
    request.check()
    record = find_and_tell(run, runs, err=as_json)
    recipe = recipe_of_run(record, moved or [], trust=trust)

    folder = out or record.path / "export" / request.name
    with telling_of_moves(recipe):
        plan = Plan.of(record, recipe, request, folder)
        if dry_run:
            _print_plan(plan, folder)
            return
        if request.to in ("lora", "dense"):
            _ = plan.choices  # which are refused before anything is loaded
        prepare_libraries()
        from malora_cli.export.run import export_run

        exported = export_run(record, recipe, request, folder, begin)
    _print(exported, request, as_json=as_json)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE" and name not in ("check", "as_json")


def _print_plan(plan: Plan, folder: Path) -> None:
    from malora_cli.cli._terminal import say

    planned = plan.planned(folder)
    rank = ""
    if planned.rank is not None:
        exact = "the full one" if planned.rank == planned.exact_rank else f"the exact one is {planned.exact_rank}"
        rank = f", rank {planned.rank} ({exact})"
    several = f" each; {len(planned.names)} of them: {', '.join(planned.names)}" if len(planned.names) > 1 else ""
    say(f"--to {plan.request.to} --format {plan.request.form}{rank}")
    say(planned.exactness)
    say(f"about {planned.bytes_each / 2**20:,.1f} MiB{several}")
    say(f"files: {', '.join(planned.files)}")
    say(f"folder: {folder}")
    for command in plan.commands(planned, folder):
        say(f"to serve it: {command}")


def _print(exported: Exported, request: Request, *, as_json: bool) -> None:
    from malora_cli.cli._tables import merge_table
    from malora_cli.cli._terminal import result_console, say, say_json

    if as_json:
        costs = {name: {cost.task: cost.as_json() for cost in found} for name, found in exported.costs.items()}
        told = {"folder": str(exported.folder), "validation": costs, "checks": exported.checks}
        say_json(told | ({} if exported.pushed is None else {"pushed": exported.pushed}))
        return
    if any(exported.costs.values()):
        say("validation loss, nats a token; kept: share of the run's gain over the base model")
        result_console().print(merge_table(exported.costs))
    elif exported.fixed:
        say("what the fixed gates cost is not measured: the run has no validation rows")
    for name, left_out in exported.left_out.items():
        if left_out:
            say(f"{name}: rank {request.rank} leaves out {left_out:.2%} of the squared norm of the updates")
    for name, check in exported.checks.items():
        for it in check["checked"]:
            say(
                f"{name}: read back in {it['runtime']}, logits of {plural(it['rows'], 'row')} differ by at most "
                f"{it['largest_difference']:.1e}"
            )
    missing = [it for check in exported.checks.values() for it in check["not_checked"]]
    for line in dict.fromkeys(f"not checked in {it['runtime']}: {it['why']}" for it in missing):
        say(line)
    say(f"exported: {exported.folder}")
    if exported.pushed is not None:
        say(f"pushed: {exported.pushed}")
