"""The page of a run: every section that has something to show, in one file that needs nothing else."""

from __future__ import annotations

import shlex
from pathlib import Path

from malora_cli.errors import RunError
from malora_cli.reports.document import document
from malora_cli.reports.html import render
from malora_cli.reports.section import SECTIONS
from malora_cli.reports.view import RunView
from malora_cli.results import RunRecord, why_unwritable
from malora_cli.results.files import write_text

_ABOUT = """
{{ view.manifest.method }} on {{ view.manifest.base_model }} · {{ view.manifest.created[:10] }}
      <span class="badge {{ view.manifest.status.value }}">{{ view.manifest.status.value }}</span>"""


def render_page(view: RunView) -> str:
    """The page as text. It holds no time of its own: the same run gives the same bytes."""
    about = render(_ABOUT.lstrip(), view=view)
    return document(view, SECTIONS, name=view.name, about=about, origin=f"the files of {view.folder}")


def check_writable(record: RunRecord, path: Path | None = None) -> None:
    """Make sure that a run's page can be written, before anything slow happens.

    Raises:
        RunError: It cannot.
    """
    page = path or record.report_path
    if (why := why_unwritable(page.parent)) is not None:
        raise _unwritable(record, page, why)


def write_report(record: RunRecord, path: Path | None = None) -> Path:
    """Write ``RUN/report/index.html`` from what lies in the run folder, in place of an older one.

    Args:
        record: The run; one that is still training, or was never evaluated, gets a page that says so.
        path: Page to write instead.

    Returns:
        Where the page lies.

    Raises:
        RunError: There is no run, one of its files cannot be read, or the page cannot be written.
    """
    page = path or record.report_path
    text = render_page(RunView.read(record))
    try:
        write_text(page, text)
    except OSError as error:
        raise _unwritable(record, page, str(error.strerror)) from error
    return page


def _unwritable(record: RunRecord, page: Path, why: str) -> RunError:
    fix = f"Write it elsewhere: {shlex.join(['malora', 'report', str(record.path), '--out'])} FILE"
    return RunError(f"the report cannot be written ({why})", where=str(page), fix=fix)
