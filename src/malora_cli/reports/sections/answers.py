"""Rows on which base and adapter score differently: what was asked, what was right, and what each answered."""

from __future__ import annotations

from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import RunView

_TEMPLATE = """
{% import "macros.html.j2" as m %}
<p class="lead">Of {{ found.total|plural("row") }} the adapter does <b>{{ found.worse|count }} worse</b> than the base
model and <b>{{ found.better|count }} better</b>.
{{ "Here they are" if all_shown else "Here are " ~ found.rows|length ~ " of them, drawn at random" }}, those that got
worse first.</p>
{% call(task) m.answers(found.rows, base_name, "adapter") %}{{ m.chip(view.tasks[task]) }}{% endcall %}

<p class="note">The number behind a name is the score of this answer alone, from 0 to 1. Long texts are without their
middle; all answers are whole in the file <code>.predictions.jsonl</code> of this evaluation under
<code>eval/</code>.</p>
"""


def _render(run: RunView) -> str | None:
    found = run.answers
    if run.evaluation is None or found is None or not found.rows:
        return None
    return render(
        _TEMPLATE,
        view=run,
        found=found,
        all_shown=len(found.rows) == found.worse + found.better,
        base_name=run.evaluation.against_name,
    )


SECTION = Section(title="Answers that differ", order=25, render=_render)
