"""``malora merge-export``: take a run's adapter elsewhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from malora_cli.cli._common import MovedArgument, RunArgument, RunsOption, StepOption, TrustOption


class Target(StrEnum):
    """What can be exported."""

    ADAPTER = "adapter"
    LORA = "lora"


def register(app: typer.Typer) -> None:
    """Add ``malora merge-export``."""
    app.command("merge-export")(merge_export)


def merge_export(
    run: RunArgument = None,
    moved: MovedArgument = None,
    to: Annotated[
        Target,
        typer.Option(help="adapter: as trained, in PEFT's format. lora: a LoRA for fixed gates, for plain PEFT."),
    ] = Target.ADAPTER,
    gates: Annotated[
        str | None,
        typer.Option(metavar="task:NAME|mix", help="Whose mean gates a LoRA takes; the mix's when left out."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to; under the run's export/ when left out.")
    ] = None,
    step: StepOption = None,
    runs: RunsOption = Path("runs"),
    trust: TrustOption = False,
) -> None:
    """Export a run's adapter. A LoRA with fixed gates is exact but for the routing; what that costs is measured.

    Example: malora merge-export runs/quickstart --to lora --gates task:chain_sum
    """
    from malora_cli.cli._common import find_and_tell, recipe_of_run, telling_of_moves
    from malora_cli.cli._terminal import result_console, say
    from malora_cli.errors import RecipeError

    if to is Target.ADAPTER and gates is not None:
        raise RecipeError("an adapter keeps its routers and takes no gates", where="--gates", fix="Use --to lora.")
    record = find_and_tell(run, runs)
    recipe = recipe_of_run(record, moved or [], trust=trust)
    from malora_cli.cli._tables import merge_table
    from malora_cli.export.merge import export_adapter, export_lora

    if to is Target.ADAPTER:
        folder = out or record.path / "export" / "adapter"
        with telling_of_moves(recipe):
            export_adapter(record, recipe, folder, step=step)
    else:
        gates = gates or "mix"
        folder = out or record.path / "export" / f"lora-{gates.removeprefix('task:')}"
        with telling_of_moves(recipe):
            costs = export_lora(record, recipe, folder, gates=gates, step=step)
        if costs:
            say("validation loss, nats a token:")
            result_console().print(merge_table(costs))
        else:
            say("what the fixed gates cost is not measured: the run has no validation rows")
    say(f"exported: {folder}")
