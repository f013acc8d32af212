"""What a section of a page is, and all there are of a run's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from malora_cli.registry import Registry
from malora_cli.reports.view import RunView

View = TypeVar("View")


@dataclass(frozen=True)
class Section(Generic[View]):
    """One part of a page, of a run or of a comparison.

    Args:
        title: The heading, also the link to it at the top of the page.
        order: Where on the page it stands, lowest first. The shipped ones leave gaps of ten.
        render: Makes the HTML below the heading; None when there is nothing to show here, and then the section
            is left out. Whoever writes HTML by hand answers for escaping; ``html.render`` escapes by itself.
    """

    title: str
    order: int
    render: Callable[[View], str | None]


SECTIONS: Registry[Section[RunView]] = Registry("report section", "malora_cli.reports.sections", "SECTION")
