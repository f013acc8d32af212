"""What every method reached on every task, and how that differs from the baseline."""

from __future__ import annotations

from malora_cli.reports.comparison.view import ComparisonView, Method, Scale
from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import SHOWN
from malora_cli.results.comparison import Effect

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% import "comparison/macros.html.j2" as c %}
{% macro table(figure) %}
<div class="scroll"><table class="compared">
<thead><tr><th>Task</th><th class="num">test rows</th>
{% for method, _ in view.known %}<th class="num">{{ m.chip(method) }}</th>{% endfor %}</tr></thead><tbody>
{% for task in view.tasks %}
<tr><th scope="row"><span class="chip">{{ m.broken(task) }}</span></th>
<td class="num">{{ view.comparison.rows[task]|count }}</td>
{% for _, it in view.known %}{% set found = it.mean(figure, task) %}
<td class="num">{{ "–" if found is none else found|percent if figure == "scores" else "%.4f"|format(found) }}</td>
{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{% if figures[0] == "losses" %}
<p class="lead">Loss on test rows in nats a token, mean over seeds.</p>
{% else %}
<p class="lead">Score on test rows, mean over seeds.</p>
{% endif %}
{{ table(figures[0]) }}
{% for figure in figures[1:] %}
<details class="data"><summary>{{ "Scores" if figure == "scores" else "Losses" }}<span class="quiet">
{{- "percent" if figure == "scores" else "nats a token" }}, mean over seeds</span></summary>
{{ table(figure) }}</details>
{% endfor %}
{% if plots %}
<h3>Difference from {{ m.broken(view.comparison.baseline) }} on every task</h3>
<p class="note">In {{ view.gap_unit }}; {{ "right" if view.is_score else "left" }} of the line is better. Every task has
its own scale; ‹ and › lie beyond it.
{% if view.comparison.margin %}Shaded: the margin.
{% endif %}
{% if not view.one_seed %}+ better, − worse, = equal, ? cannot be told apart.{% endif %}</p>
{{ c.forests(view, plots) }}
{% if left_out %}<p class="note">The {{ plots|length }} tasks with the largest differences are drawn; all
{{ effects|length }} are in the table.</p>{% endif %}
<details class="data"><summary>Data<span class="quiet">every difference, with both intervals</span></summary>
{{ c.differences(view, effects) }}</details>
{% endif %}
"""

Effects = list[tuple[Method, Effect]]


def effects(view: ComparisonView) -> list[tuple[str, Effects]]:
    """How every method differs from the baseline, by task."""
    found = [(task, [(method, it.tasks[task]) for method, it in view.known if task in it.tasks]) for task in view.tasks]
    return [(task, methods) for task, methods in found if methods]


def drawn(found: list[tuple[str, Effects]]) -> list[tuple[str, Effects]]:
    """All tasks, or of very many those with the largest differences, in the same order."""
    largest = sorted(found, key=lambda item: -max(abs(effect.value) for _, effect in item[1]))[:SHOWN]
    names = {task for task, _ in largest}
    return [item for item in found if item[0] in names]


def plots(view: ComparisonView, shown: list[tuple[str, Effects]]) -> list[tuple[str, Scale, Effects]]:
    """Every task with a line through zero that has room for its methods."""
    margin = view.comparison.margin
    return [(task, Scale.over([effect for _, effect in found], margin), found) for task, found in shown]


def _render(view: ComparisonView) -> str | None:
    measured = {
        name: any(getattr(run, name) for _, it in view.known for run in it.runs) for name in ("losses", "scores")
    }
    figures = [name for name in (["scores", "losses"] if view.is_score else ["losses", "scores"]) if measured[name]]
    if not figures:
        return None
    found = effects(view)
    shown = drawn(found)
    return render(
        _TEMPLATE,
        view=view,
        figures=figures,
        effects=found,
        plots=plots(view, shown),
        left_out=len(shown) < len(found),
    )


SECTION = Section(title="Tasks", order=40, render=_render)
