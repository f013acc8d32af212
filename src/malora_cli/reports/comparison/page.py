"""The page of a comparison as a whole."""

from __future__ import annotations

from pathlib import Path

from malora_cli.errors import RunError
from malora_cli.registry import Registry
from malora_cli.reports.comparison.view import ComparisonView
from malora_cli.reports.document import document
from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.results import write_text
from malora_cli.results.comparison import Comparison

SECTIONS: Registry[Section[ComparisonView]] = Registry(
    "section of a comparison", "malora_cli.reports.comparison.sections", "SECTION"
)

_ABOUT = """
{{- view.known|length|plural("method") }}, baseline {{ it.baseline }} · {{ view.tasks|length|plural("task") }} ·
{{ it.seeds|length|plural("seed") }} · {{ it.steps|count }} steps · {{ it.created[:10] }}
"""


def render_comparison(comparison: Comparison, runs: Path | None = None) -> str:
    """The page as text. It holds no time of its own: the same comparison gives the same bytes.

    Args:
        comparison: What it shows.
        runs: Where the folders of its runs lie, of which it shows some things besides.
    """
    view = ComparisonView(comparison, runs)
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    about = render(_ABOUT, view=view, it=comparison)
    return document(view, SECTIONS, name=comparison.name, about=about, origin="comparison.json", style=style)


def write_comparison(folder: Path, comparison: Comparison, runs: Path | None = None) -> Path:
    """Write ``FOLDER/report/index.html``, in place of an older one.

    Args:
        folder: Where the comparison lies.
        comparison: What the page shows; one whose runs have all failed gets a page that says so.
        runs: As for `render_comparison`.

    Returns:
        Where the page lies.

    Raises:
        RunError: The page cannot be written.
    """
    page = folder / "report" / "index.html"
    text = render_comparison(comparison, runs)
    try:
        write_text(page, text)
    except OSError as error:
        fix = "Make its folder writable, then run the same `malora compare` again."
        raise RunError(f"the report cannot be written ({error.strerror})", where=str(page), fix=fix) from error
    return page
