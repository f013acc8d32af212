"""What may be concluded, and what is to be known before anything is."""

from __future__ import annotations

from malora_cli.reports.comparison.view import ComparisonView
from malora_cli.reports.html import render
from malora_cli.reports.section import Section

_TEMPLATE = """
{% for sentence in it.sentences %}
<p class="{{ "verdict" if loop.first else "lead" }}">{{ sentence }}</p>
{% endfor %}
{% for note in it.notes %}
<p class="missing">{{ note }}</p>
{% endfor %}
"""


def _render(view: ComparisonView) -> str | None:
    it = view.comparison
    return render(_TEMPLATE, it=it) if it.sentences or it.notes else None


SECTION = Section(title="Result", order=10, render=_render)
