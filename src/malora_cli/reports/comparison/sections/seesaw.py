"""The seesaw effect: what each task gained or lost by being trained together with the others."""

from __future__ import annotations

from malora_cli.reports.comparison.sections.tasks import drawn, plots
from malora_cli.reports.comparison.view import ComparisonView
from malora_cli.reports.html import render, signed
from malora_cli.reports.section import Section

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% import "comparison/macros.html.j2" as c %}
<p class="lead">Loss of every method less that of {{ view.comparison.baseline }} trained on the task alone, on the same
rows of it; below zero, left of the line, the mixture is better. Delta_m is the mean gain in percent of the loss. Every
task has its own scale.</p>
{{ c.forests(view, plots) }}
{% if left_out %}<p class="note">The {{ plots|length }} tasks with the largest differences are drawn; all
{{ effects|length }} are in the table.</p>{% endif %}
<div class="scroll"><table class="compared">
<thead><tr><th>Method</th>{% for task in view.comparison.alone %}<th class="num">{{ m.broken(task) }}</th>{% endfor %}
<th class="num">Delta_m</th><th class="num">worse than alone</th></tr></thead><tbody>
{% for method, it in found %}
<tr><th scope="row">{{ m.chip(method) }}</th>
{% for task in view.comparison.alone %}<td class="num">{% if task in it.alone %}{{ signed(it.alone[task].value) }}
<b>{{ it.alone[task].verdict.sign.replace("-", "−") }}</b>{% else %}–{% endif %}</td>{% endfor %}
<td class="num">{{ "–" if it.delta_m is none else signed(it.delta_m, 1) + "%" }}</td>
<td class="num">{{ it.seesaw|length }} of {{ it.alone|length }}</td></tr>
{% endfor %}
</tbody></table></div>
<details class="data"><summary>Data<span class="quiet">every difference, with both intervals</span></summary>
{{ c.differences(view, effects) }}</details>
"""


def _render(view: ComparisonView) -> str | None:
    found = [(method, it) for method, it in view.known if it.alone]
    if not found:
        return None
    effects = [
        (task, [(method, it.alone[task]) for method, it in found if task in it.alone]) for task in view.comparison.alone
    ]
    effects = [(task, methods) for task, methods in effects if methods]
    shown = drawn(effects)
    return render(
        _TEMPLATE,
        view=view.as_losses,
        found=found,
        effects=effects,
        plots=plots(view, shown),
        left_out=len(shown) < len(effects),
        signed=lambda value, digits=3: signed(value, digits=digits),
    )


SECTION = Section(title="The seesaw: together or alone", order=45, render=_render)
