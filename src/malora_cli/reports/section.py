"""What a section of the report is, and all there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from malora_cli.registry import Registry
from malora_cli.reports.view import RunView


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Args:
        title: The heading, also the link to it at the top of the page.
        order: Where on the page it stands, lowest first. The shipped ones leave gaps of ten.
        render: Makes the HTML below the heading; None when the run has nothing to show here, and then the section
            is left out. Whoever writes HTML by hand answers for escaping; ``html.render`` escapes by itself.
    """

    title: str
    order: int
    render: Callable[[RunView], str | None]


SECTIONS: Registry[Section] = Registry("report section", "malora_cli.reports.sections", "SECTION")
