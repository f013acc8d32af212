"""What pages of runs and of comparisons have in common: sections of a registry in one file that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from malora_cli.characters import visible
from malora_cli.registry import Registry
from malora_cli.reports.html import render_file
from malora_cli.reports.section import Section, View


def document(
    view: View, registry: Registry[Section[View]], *, name: str, about: str, origin: str, style: str = ""
) -> str:
    """Every section that has something to show, under one heading.

    Args:
        view: What the sections look at.
        registry: The sections there are.
        name: The heading.
        about: The line below it.
        origin: What the page was made from, as its last line says.
        style: Rules besides those that all pages have.
    """
    named = sorted(registry.items(), key=lambda item: (item[1].order, item[0]))
    rendered = [(key, section.title, section.render(view)) for key, section in named]
    sections = [(key, title, Markup(html)) for key, title, html in rendered if html is not None]
    shared = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    values = {"name": name, "about": about, "origin": origin, "sections": sections, "style": Markup(shared + style)}
    return visible(render_file("page.html.j2", **values))
