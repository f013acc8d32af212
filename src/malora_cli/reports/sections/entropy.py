"""How sure the routers are about each task: the entropy of their gates."""

from __future__ import annotations

from statistics import fmean

from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import RunView

_TEMPLATE = """
{% import "macros.html.j2" as m %}
<p class="lead">Routers are at <b>{{ mean|percent }}</b> of the entropy of an even choice; surest about
{{ m.chip(surest) }} ({{ by_task[surest.name]|percent }}){% if tasks|length > 1 %}, least sure about
{{ m.chip(least) }} ({{ by_task[least.name]|percent }}){% endif %}.</p>
{% call(task) m.entropies(groups, rows) %}{{ m.chip(task) }}{% endcall %}

{{ m.some(view) -}}
<p class="note">Entropy of a router's softmax over all its experts, in percent of the most it can be, mean over the
tokens of rows that were not trained on and over routers, after {{ step|count }} steps. 100 is an even choice; 0 is a
router that has made up its mind.</p>
"""


def _render(run: RunView) -> str | None:
    if run.gate_entropy is None:
        return None
    step, entropy = run.gate_entropy
    tasks = [task for task in run.ordered(entropy) if entropy[task.name]]
    if not tasks:
        return None
    by_task = {task.name: fmean(entropy[task.name].values()) for task in tasks}
    return render(
        _TEMPLATE,
        view=run,
        tasks=tasks,
        groups=list(dict.fromkeys(group for task in tasks for group in entropy[task.name])),
        rows=[(task, entropy[task.name]) for task in run.shown(tasks)],
        by_task=by_task,
        mean=fmean(by_task.values()),
        surest=min(tasks, key=lambda task: by_task[task.name]),
        least=max(tasks, key=lambda task: by_task[task.name]),
        step=step,
    )


SECTION = Section(title="Gate entropy", order=52, render=_render)
