"""The whole page: every section that has something to show, in one file that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from malora_cli.characters import visible
from malora_cli.reports.html import render_file
from malora_cli.reports.section import SECTIONS
from malora_cli.reports.view import RunView
from malora_cli.results import RunRecord
from malora_cli.results.files import write_text


def render_page(view: RunView) -> str:
    """The page as text. It holds no time of its own: the same run gives the same bytes."""
    named = sorted(SECTIONS.items(), key=lambda item: (item[1].order, item[0]))
    rendered = [(name, section.title, section.render(view)) for name, section in named]
    sections = [(name, title, Markup(html)) for name, title, html in rendered if html is not None]
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    return visible(render_file("page.html.j2", view=view, sections=sections, style=Markup(style)))


def write_report(record: RunRecord) -> Path:
    """Write ``RUN/report/index.html`` from what lies in the run folder, in place of an older one.

    Args:
        record: The run; one that is still training, or was never evaluated, gets a page that says so.

    Returns:
        Where the page lies.

    Raises:
        RunError: There is no run, or one of its files cannot be read.
    """
    write_text(record.report_path, render_page(RunView.read(record)))
    return record.report_path
