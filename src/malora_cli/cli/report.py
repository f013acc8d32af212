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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print where the page lies, and the scores on it, as JSON.")
    ] = False,
    runs: RunsOption = Path("runs"),
) -> None:
    """Write RUN/report/index.html: one self-contained page of settings, losses, the seesaw and scores.

    A run that is still training, or was not evaluated, gets a page that says what is missing.

    Example: malora report runs/quickstart
    """
    from malora_cli.api import Run
    from malora_cli.cli._terminal import say, say_json
    from malora_cli.reports import check_writable, write_report
    from malora_cli.results import find_run

    record = find_run(run, runs)
    if not as_json:
        say(f"run:    {record.path}")
    page = out / "index.html" if out is not None and out.is_dir() else out
    check_writable(record, page)
    written = write_report(record, page)
    if as_json:
        say_json({"run": str(record.path), "report": str(written), "scores": Run(record.path).scores()})
    else:
        say(f"report: {written}")
