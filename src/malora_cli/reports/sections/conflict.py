"""Gradient conflict: which tasks pull the adapter in opposite directions."""

from __future__ import annotations

from itertools import combinations

from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import RunView

_TEMPLATE = """
{% import "macros.html.j2" as m %}
<p class="lead">{% if against %}<b>{{ against|count }}</b> of {{ pairs|plural("pair") }} of tasks pull against each
other, most of all {{ m.chip(worst[0]) }} and {{ m.chip(worst[1]) }} (cosine {{ "%.2f"|format(lowest) }}).
{%- else %}No two tasks pull against each other; least alike are {{ m.chip(worst[0]) }} and
{{ m.chip(worst[1]) }} (cosine {{ "%.2f"|format(lowest) }}).{% endif %}</p>
<div class="scroll"><table class="heat load">
<thead><tr><th>Task</th>{% for task in shown %}<th class="num">{{ task.name }}</th>{% endfor %}
<th class="num">gradient norm</th></tr></thead>
<tbody>
{% for task in shown %}
<tr><th scope="row">{{ m.chip(task) }}</th>
{% for other in shown %}
<td class="num">{% if task.name != other.name %}{{ "%.2f"|format(cosine[task.name][other.name]) }}{% endif %}</td>
{% endfor %}<td class="num">{{ "%.3g"|format(norm[task.name]) }}</td></tr>
{% endfor %}
</tbody></table></div>
{{ m.some(view) -}}
<div class="scroll"><table class="heat load">
<thead><tr><th>Parameters</th>{% for step in steps %}<th class="num">step {{ step|count }}</th>{% endfor %}</tr></thead>
<tbody>
{% for group, means in groups.items() %}
<tr><th scope="row">{{ group }}</th>
{% for mean in means %}<td class="num">{{ "–" if mean is none else "%.2f"|format(mean) }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<p class="note">Above: cosine of the tasks' gradients with respect to all adapter parameters after {{ step|count }}
steps; below 0 a step for one task undoes some of the other's. Below: its mean over pairs of tasks, for every group of
parameters, at each measurement. Gradients are of the summed loss of {{ rows|plural("training row") }} a task, without
dropout, sketched in a fixed number of slots, which is exact to about 0.004 of the norms. Measuring took
{{ "%.1f"|format(seconds) }} s each time.
{%- if steps|length < measured %} Of {{ measured|count }} measurements {{ steps|length }} are shown, the first and the
last among them.{% endif %}</p>
"""


def _render(run: RunView) -> str | None:
    newest = run.log.conflict
    if newest is None:
        return None
    tasks = run.ordered(newest.tasks)
    if len(tasks) < 2:
        return None
    matrix = newest.groups["all"].cosine
    cosine = {one: {other: matrix[a][b] for b, other in enumerate(newest.tasks)} for a, one in enumerate(newest.tasks)}
    kept = run.log.conflicts.with_last()
    pairs = list(combinations([task.name for task in tasks], 2))
    worst = min(pairs, key=lambda pair: cosine[pair[0]][pair[1]])
    return render(
        _TEMPLATE,
        view=run,
        shown=run.shown(tasks),
        cosine=cosine,
        norm=dict(zip(newest.tasks, newest.groups["all"].norm, strict=True)),
        pairs=len(pairs),
        against=sum(cosine[one][other] < 0 for one, other in pairs),
        worst=[run.tasks[name] for name in worst],
        lowest=cosine[worst[0]][worst[1]],
        step=newest.step,
        steps=[compared.step for compared in kept],
        measured=run.log.conflicts.count,
        rows=newest.rows,
        groups={group: [compared.cosine.get(group) for compared in kept] for group in newest.groups},
        seconds=run.log.conflict_seconds / run.log.conflicts.count,
    )


SECTION = Section(title="Gradient conflict", order=45, render=_render)
