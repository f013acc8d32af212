"""Rows on which base and adapter score differently: what was asked, what was right, and what each answered."""

from __future__ import annotations

from malora_cli.reports.differing import Side
from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import RunView

#: A text that is longer, or has more lines, starts folded.
_SHORT, _LINES = 240, 5
#: Characters of it that are seen then.
_SEEN = 120

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% macro folded(text) -%}
{% if text|length > short or text.count("\\n") >= lines -%}
<details><summary><span class="start">{{ text[:seen]|replace("\\n", " ") }} …</span></summary>{{ text }}</details>
{%- elif text.strip() %}{{ text }}{% else %}<span class="quiet">nothing</span>{% endif %}
{%- endmacro %}
{% macro side(name, found, other) %}
<div><dt>{{ name }}, <span class="{{ "up" if found.score > other.score else "down" }}">{{ score(found) }}</span></dt>
<dd>{{ folded(found.text) }}</dd></div>
{% endmacro %}
<p class="lead">Of {{ found.total|plural("row") }} the adapter does <b>{{ found.worse|count }} worse</b> than the base
model and <b>{{ found.better|count }} better</b>.
{{ "Here they are" if all_shown else "Here are " ~ found.rows|length ~ " of them, drawn at random" }}, those that got
worse first.</p>
<ol class="answers">
{% for row in found.rows %}
<li><div class="head">{{ m.chip(view.tasks[row.task]) }}<span class="quiet">
{{- "row " ~ row.number|count if row.number }}</span></div>
<dl><div><dt>asked</dt><dd>{{ folded(row.prompt) }}</dd></div>
<div><dt>right</dt><dd>{{ folded(row.reference) }}</dd></div>
{{ side(base_name, row.base, row.adapter) }}{{ side("adapter", row.adapter, row.base) }}</dl></li>
{% endfor %}
</ol>
<p class="note">The number behind a name is the score of this answer alone, from 0 to 1. Long texts are without their
middle; all answers are whole in the file <code>.predictions.jsonl</code> of this evaluation under
<code>eval/</code>.</p>
"""


def _score(side: Side) -> str:
    """What an answer is worth, and why where that is known."""
    why = side.outcome or ("could not be read" if side.unread else "")
    return f"{side.score:.2g}" + (f" ({why})" if why else "")


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
        score=_score,
        short=_SHORT,
        lines=_LINES,
        seen=_SEEN,
    )


SECTION = Section(title="Answers that differ", order=25, render=_render)
