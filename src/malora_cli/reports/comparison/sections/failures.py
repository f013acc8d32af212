"""Runs that came to nothing, and why."""

from __future__ import annotations

from malora_cli.reports.comparison.view import ComparisonView
from malora_cli.reports.html import render
from malora_cli.reports.section import Section

_TEMPLATE = """
{% import "macros.html.j2" as m %}
<p class="lead">{{ failures|length|plural("run") }} failed. The others went on.</p>
<div class="scroll"><table class="compared">
<thead><tr><th>Method</th><th class="num">seed</th><th>why</th><th>run</th></tr></thead><tbody>
{% for it in failures %}
<tr><th scope="row">{{ m.chip(view.methods[it.method]) }}</th><td class="num">{{ it.seed }}</td>
<td class="long">{{ view.told(it.why) }}</td><td class="long">{{ view.run(it.run) }}</td></tr>
{% endfor %}
</tbody></table></div>
"""


def _render(view: ComparisonView) -> str | None:
    failures = view.comparison.failures
    return render(_TEMPLATE, view=view, failures=failures) if failures else None


SECTION = Section(title="Failures", order=70, render=_render)
