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
<div class="groups" style="--narrowest:420px;margin-top:14px">
{% for task, scale, found in plots %}
<figure><figcaption><span class="chip">{{ m.broken(task) }}</span></figcaption>
<div class="forest">
{% for method, effect in found %}
<div>{{ m.chip(method) }}{{ c.plot(view, method, effect, scale) }}<span class="num">{{ c.gap(view, effect) }}
<b>{{ effect.verdict.sign.replace("-", "−") }}</b></span></div>
{% endfor %}
{{ c.ends(view, scale) }}
</div></figure>
{% endfor %}
</div>
{% if left_out %}<p class="note">The {{ plots|length }} tasks with the largest differences are drawn; all
{{ effects|length }} are in the table.</p>{% endif %}
<details class="data"><summary>Data<span class="quiet">every difference, with both intervals</span></summary>
<div class="scroll"><table class="compared">
<thead><tr><th>Task</th><th>method</th><th class="num">difference</th><th class="num">95% interval</th>
<th class="num">over rows</th><th class="num">over seeds</th><th class="num">p (Holm)</th><th>verdict</th></tr></thead>
<tbody>
{% for task, found in effects %}{% for method, effect in found %}
<tr><th scope="row"><span class="chip">{{ m.broken(task) }}</span></th><td>{{ m.chip(method) }}</td>
<td class="num">{{ view.gap(effect.value) }}</td><td class="num">{{ view.interval(effect) }}</td>
<td class="num">{{ both(effect.rows_low, effect.rows_high) }}</td>
<td class="num">{{ both(effect.seeds_low, effect.seeds_high) }}</td>
<td class="num">{{ "–" if effect.p_holm is none else effect.p_holm|probability }}</td>
<td>{{ c.verdict(view, effect) }}</td></tr>
{% endfor %}{% endfor %}
</tbody></table></div></details>
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


def _render(view: ComparisonView) -> str | None:
    measured = {
        name: any(getattr(run, name) for _, it in view.known for run in it.runs) for name in ("losses", "scores")
    }
    figures = [name for name in (["scores", "losses"] if view.is_score else ["losses", "scores"]) if measured[name]]
    if not figures:
        return None
    found = effects(view)
    shown = drawn(found)
    margin = view.comparison.margin

    def both(low: float | None, high: float | None) -> str:
        return "–" if low is None or high is None else f"{view.gap(low)} to {view.gap(high)}"

    return render(
        _TEMPLATE,
        view=view,
        figures=figures,
        effects=found,
        plots=[(task, Scale.over([effect for _, effect in methods], margin), methods) for task, methods in shown],
        left_out=len(shown) < len(found),
        both=both,
    )


SECTION = Section(title="Tasks", order=40, render=_render)
