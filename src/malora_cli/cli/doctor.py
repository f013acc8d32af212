"""``malora doctor``: is everything here that a run needs?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from malora_cli.cli import _completion
from malora_cli.cli._common import RunsOption

if TYPE_CHECKING:
    from collections.abc import Iterator

    from malora_cli.doctor import Check
    from malora_cli.recipe import LoadedRecipe

_STYLES = {"ok": "green", "note": "dim", "warn": "yellow", "fail": "bold red"}


def register(app: typer.Typer) -> None:
    """Add ``malora doctor``."""
    app.command("doctor")(doctor)


def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="Also look whether its base model and data are here, and whether memory holds the weights.",
            show_default=False,
            autocompletion=_completion.recipes,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write them for a bug report, with manifest, recipe and log of the newest run; no rows, no secrets.",
        ),
    ] = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Check the installation: packages, devices, memory, disk. Downloads nothing; exit code 2 if a check fails.

    Example: malora doctor
    """
    from rich.text import Text

    from malora_cli.cli._common import read_recipe
    from malora_cli.cli._terminal import plain_table, result_console, say, say_json
    from malora_cli.cli._voice import begin
    from malora_cli.doctor import checked, write_bundle
    from malora_cli.results import runs_under

    loaded = None if recipe is None else read_recipe(recipe)
    begin("looking")
    found = list(checked(runs))
    if loaded is not None and not any(check.id == "torch" and check.status == "fail" for check in found):
        found += _of_recipe(loaded)
    if as_json:
        say_json({"checks": [asdict(check) for check in found]})
    else:
        table = plain_table(("", "check", "found", "what to do"))
        for check in found:
            table.add_row(Text(check.status, _STYLES[check.status]), *map(Text, (check.id, check.found, check.do)))
        result_console().print(table)
    if bundle is not None:
        told = write_bundle(bundle, found, next(runs_under(runs), None))
        for line in (f"{bundle} has:", *told, "Read it before you send it."):
            say(line, err=as_json)
    raise typer.Exit(2 if any(check.status == "fail" for check in found) else 0)


def _of_recipe(loaded: LoadedRecipe) -> Iterator[Check]:
    from malora_cli.cli._common import prepare_libraries

    prepare_libraries()
    from malora_cli.doctor.recipe import of_recipe

    return of_recipe(loaded.recipe)
