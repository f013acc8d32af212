"""``malora doctor``: is everything here that a run needs?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from malora_cli.cli._common import RunsOption

_STYLES = {"ok": "green", "note": "dim", "warn": "yellow", "fail": "bold red"}


def register(app: typer.Typer) -> None:
    """Add ``malora doctor``."""
    app.command("doctor")(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
    runs: RunsOption = Path("runs"),
) -> None:
    """Check the installation: packages, devices, memory, disk. Writes and downloads nothing; exit code 2 if one fails.

    Example: malora doctor
    """
    from rich.text import Text

    from malora_cli.cli._terminal import plain_table, result_console, say, say_for_now
    from malora_cli.doctor import checked

    say_for_now("looking")
    found = list(checked(runs))
    if as_json:
        say(json.dumps({"schema": 1, "checks": [asdict(check) for check in found]}))
    else:
        table = plain_table(("", "check", "found", "what to do"))
        for check in found:
            table.add_row(Text(check.status, _STYLES[check.status]), *map(Text, (check.id, check.found, check.do)))
        result_console().print(table)
    raise typer.Exit(2 if any(check.status == "fail" for check in found) else 0)
