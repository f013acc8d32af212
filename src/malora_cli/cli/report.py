"""``malora report``: the page of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from malora_cli.cli._common import RunArgument, RunsOption


def register(app: typer.Typer) -> None:
    """Add ``malora report``."""
    app.command("report")(report)


def report(
    run: RunArgument = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Page to write; the run's report/index.html when left out."),
    ] = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Write RUN/report/index.html: one self-contained page of settings, losses, the seesaw and scores.

    A run that is still training, or was not evaluated, gets a page that says what is missing.

    Example: malora report runs/quickstart
    """
    from malora_cli.cli._terminal import say
    from malora_cli.reports import check_writable, write_report
    from malora_cli.results import find_run

    record = find_run(run, runs)
    say(f"run:    {record.path}")
    page = out / "index.html" if out is not None and out.is_dir() else out
    check_writable(record, page)
    say(f"report: {write_report(record, page)}")
