"""Score and loss of every task and domain, base model beside adapter."""

from __future__ import annotations

from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import SHOWN, RunView
from malora_cli.results import TaskData

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% macro row(kind, head, metric, rows, base, adapter, colour) %}
<tr class="{{ kind }}">
  <th scope="row">{{ head }}</th>
  <td class="pair">{{ m.dumbbell(base.score, adapter.score, colour) }}</td>
  <td class="num">{{ base.score|percent }}</td>
  <td class="num strong">{{ adapter.score|percent }}</td>
  <td class="num">{{ m.change(adapter.score - base.score, (adapter.score - base.score)|points) }}</td>
  <td class="num gap">{{ base.loss|nats }}</td>
  <td class="num strong">{{ adapter.loss|nats }}</td>
  <td class="num">{{ m.change(adapter.loss - base.loss, (adapter.loss - base.loss)|signed, -1) }}</td>
  <td class="num gap quiet">{{ rows }}</td>
  <td class="quiet">{{ metric }}</td>
</tr>
{% endmacro %}
<div class="scroll"><table class="scores">
<thead>
<tr><td></td><td class="pair"></td><th colspan="3" class="num">Score</th>
<th colspan="3" class="num gap">Held-out loss, nats a token</th><td colspan="2"></td></tr>
<tr><th>Task</th><th class="pair"><span class="scale"><i>0</i><i>50</i><i>100%</i></span></th>
<th class="num">base</th><th class="num">adapter</th><th class="num">points</th>
<th class="num gap">base</th><th class="num">adapter</th><th class="num">change</th>
<th class="num gap">rows</th><th>metric</th></tr>
</thead>
<tbody>
{% for domain, it in domains.items() if domain in domains_shown %}
{{ row("domain", domain, "", "", it.against, it.model, "var(--muted)") }}
{% for task in tasks if result.tasks[task.name].domain == domain %}
{% set it = result.tasks[task.name] %}
{{ row("task", m.chip(task), it.metric, it.rows ~ shares.get(task.name, ""), it.against, it.model, task.colour) }}
{% endfor %}
{% endfor %}
</tbody>
<tfoot>{{ row("total", "All domains", "", "", overall.against, overall.model, "var(--accent)") }}</tfoot>
</table></div>
<p class="legend"><span><i class="dot hollow"></i>base model</span><span><i class="dot"></i>adapter</span></p>
{{ m.some(view) -}}
{% for line in given_away[:most] %}<p class="note">{{ line }}</p>{% endfor %}
{% if given_away|length > most %}<p class="note">{{ (given_away|length - most)|count }} more such tasks: see
<code>manifest.json</code>.</p>{% endif %}
<p class="note">Evaluated {{ result.created[:16]|replace("T", " ") }} UTC after {{ result.step|count }} steps on
{{ "all rows" if result.limit is none else "at most " ~ result.limit|plural("row") }} a task.
A domain is the mean of its tasks, the last line the mean of the domains.
{% if fewest %}
With {{ fewest|plural("row") }} the standard error of a score is at most {{ (50 / fewest ** 0.5)|round(1) }} points.
{% endif %}
{% if result.step < view.step %}The run was trained further since: evaluate it again.{% endif %}
{% if others %}The run has {{ others|plural("other evaluation") }} under <code>eval/</code>.{% endif %}</p>
"""


def _given_away(name: str, data: TaskData) -> str:
    return (
        f"{name}: {data.also_trained:,} of its {data.rows:,} test rows are also training rows, so its score is too "
        "good by what was memorised."
    )


def _render(run: RunView) -> str | None:
    result = run.evaluation
    if result is None:
        return None
    tasks = run.shown(run.ordered(result.tasks))
    given_away = {
        name: data for name, data in run.manifest.test_data.items() if data.also_trained and name in result.tasks
    }
    return render(
        _TEMPLATE,
        view=run,
        result=result,
        tasks=tasks,
        domains_shown={result.tasks[task.name].domain for task in tasks},
        domains=result.domains(),
        overall=result.overall(),
        shares={
            name: f" ({(data.also_trained or 0) / data.rows:.0%} also trained)" for name, data in given_away.items()
        },
        given_away=[_given_away(name, data) for name, data in given_away.items()],
        most=SHOWN,
        fewest=min((task.rows for task in result.tasks.values()), default=0),
        others=len(run.evaluations) - 1,
    )


SECTION = Section(title="Scores", order=20, render=_render)
