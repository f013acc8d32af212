"""Score and loss of every task and domain with its interval, base model beside adapter, and what can be told apart."""

from __future__ import annotations

from collections.abc import Iterator

from malora_cli.characters import plural
from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import SHOWN, RunView
from malora_cli.results import EvalResult, Scores, TaskData, TaskEval

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% macro loss(scores) -%}
{{ scores.loss|nats }}{% if scores.bits_per_byte is not none %} <span class="about">
{{- "%.2f"|format(scores.bits_per_byte) }} bits</span>{% endif %}
{%- endmacro %}
{% macro row(kind, head, it, colour, rows="", metric="", evidence="") %}
{% set base, adapter, found = it.against, it.model, it.difference %}
<tr class="{{ kind }}">
  <th scope="row">{{ head }}</th>
  <td class="pair">{{ m.dumbbell(base, adapter, colour) }}</td>
  <td class="num">{{ m.score(base) }}</td>
  <td class="num strong">{{ m.score(adapter) }}</td>
  <td class="num">{{ m.gain(it) }}</td>
  {% if paired %}
  <td class="num">{% if found %}{{ found.p_holm|probability if found.p_holm is not none else "–" }} <span class="about">
  {{- found.wins|count }} / {{ found.ties|count }} / {{ found.losses|count }}</span>{% endif %}</td>
  {% endif %}
  {% if unread %}
  <td class="num">{{ adapter.unread|percent if adapter.unread is not none }} <span class="about">
  {{- "base " ~ base.unread|percent if base.unread is not none }}</span></td>
  {% endif %}
  <td class="num gap">{{ loss(base) }}</td>
  <td class="num strong">{{ loss(adapter) }}</td>
  <td class="num">{% if base.loss is not none and adapter.loss is not none %}
  {{- m.change(adapter.loss - base.loss, (adapter.loss - base.loss)|signed, -1) }}{% endif %}</td>
  <td class="num gap quiet">{{ rows }}{% if evidence %} <span class="about">{{ evidence }}</span>{% endif %}</td>
  <td class="quiet">{{ metric }}</td>
</tr>
{% endmacro %}
<div class="scroll"><table class="scores">
<thead>
<tr><td></td><td class="pair"></td><th colspan="{{ 3 + paired + unread }}" class="num">Score</th>
<th colspan="3" class="num gap">Held-out loss, nats a token{{ ", and bits a byte" if bits }}</th>
<td colspan="2"></td></tr>
<tr><th>Task</th><th class="pair"><span class="scale"><i>0</i><i>50</i><i>100%</i></span></th>
<th class="num">{{ base_name }}</th><th class="num">adapter</th><th class="num">points</th>
{% if paired %}<th class="num">p (Holm) <span class="about">won / tied / lost</span></th>{% endif %}
{% if unread %}<th class="num">unread</th>{% endif %}
<th class="num gap">base</th><th class="num">adapter</th><th class="num">change</th>
<th class="num gap">rows</th><th>metric</th></tr>
</thead>
<tbody>
{% for domain, it in domains.items() if domain in domains_shown %}
{{ row("domain", domain, it, "var(--muted)") }}
{% for task in tasks if result.tasks[task.name].domain == domain %}
{% set it = result.tasks[task.name] %}
{{ row("task", m.chip(task), it, task.colour, it.rows|count, it.metric, evidence[task.name]) }}
{% endfor %}
{% endfor %}
</tbody>
<tfoot>{{ row("total", "All domains", overall, "var(--accent)") }}</tfoot>
</table></div>
<p class="legend"><span><i class="dot hollow"></i>base model</span><span><i class="dot"></i>adapter</span>
{% if intervals %}<span><i class="whisker"></i>95% interval</span>{% endif %}</p>
{{ m.some(view) -}}
{% if alike %}
<p class="lead"><b>Cannot be told apart from the base model, and grey:</b> {% for task, seen in alike[:most] %}
{{- m.chip(task) }} ({{ seen }}){{ ", " if not loop.last }}{% endfor %}
{{- " and " ~ (alike|length - most)|plural("other") if alike|length > most }}.
In brackets: the true difference that would have been found 80 times in 100.</p>
{% endif %}
{% if starred %}<p class="note">* A tenth or more of the answers could not be read, so this score measures their format
more than their content.</p>{% endif %}
{% for line in (outcomes + given_away)[:most] %}<p class="note">{{ line }}</p>{% endfor %}
{% if given_away|length > most %}<p class="note">{{ (given_away|length - most)|count }} more such tasks: see
<code>manifest.json</code>.</p>{% endif %}
<p class="note">Evaluated {{ result.created[:16]|replace("T", " ") }} UTC after {{ result.step|count }} steps on
{{ "all rows" if result.limit is none else "at most " ~ result.limit|plural("row") }} a task.
{% if result.shots %} The base model had {{ result.shots|plural("solved training row") }} in front of each prompt, the
adapter none. {% endif %}
A domain is the mean of its tasks, the last line the mean of the domains.
{% if intervals %} ± is the farther end of the 95% interval. {% endif %}
{% if paired %}
Base and adapter are compared row by row: won, tied and lost are rows that the adapter does better, the same and worse.
p is the probability of a change as large where there is none, corrected by Holm's method for all
{{ result.tasks|length|plural("task") }}, and likewise for all domains; from 0.05 on the change is grey.
{% endif %}
{% if unread %} Answers that could not be read count as wrong. {% elif unread_known %} Every answer could be read.
{% endif %}
{% if fewest and not intervals %}
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


def _evidence(task: TaskEval, data: TaskData | None) -> str:
    """What makes a task's rows less evidence than their number says."""
    told = []
    if task.clusters is not None and task.clusters < task.rows:
        told.append(f"in {plural(task.clusters, 'cluster')}")
    if data is not None and data.also_trained:
        told.append(f"({data.also_trained / data.rows:.0%} also trained)")
    return " ".join(told)


def _seen(task: TaskEval) -> str | None:
    """What could have been seen of a task whose scores cannot be told apart; None where they can."""
    found = task.difference
    if found is None or found.told_apart:
        return None
    return "too few rows to find any" if found.detectable is None else f"{100 * found.detectable:.1f} points"


def _outcomes(result: EvalResult) -> Iterator[str]:
    """What became of generated code, a line a task."""
    place = f", in {result.sandbox}" if result.sandbox else ""
    for name, task in result.tasks.items():
        sides = {"base model": task.against, "adapter": task.model}
        told = [f"{_counted(scores)} of the {who}" for who, scores in sides.items() if scores and scores.outcomes]
        if told:
            yield f"{name}, programs that were run{place}: {'; '.join(told)}."


def _counted(scores: Scores) -> str:
    return ", ".join(f"{number:,} {outcome}" for outcome, number in scores.outcomes.items())


def _render(run: RunView) -> str | None:
    result = run.evaluation
    if result is None:
        return None
    tasks, test = run.shown(run.ordered(result.tasks)), run.manifest.test_data
    given_away = {name: data for name, data in test.items() if data.also_trained and name in result.tasks}
    alike = [(run.tasks[name], seen) for name, task in result.tasks.items() if (seen := _seen(task)) is not None]
    scores = [found for task in result.tasks.values() for found in (task.against, task.model) if found is not None]
    return render(
        _TEMPLATE,
        view=run,
        result=result,
        tasks=tasks,
        domains_shown={result.tasks[task.name].domain for task in tasks},
        domains=result.domains(),
        overall=result.overall(),
        base_name=result.against_name,
        evidence={name: _evidence(task, test.get(name)) for name, task in result.tasks.items()},
        paired=any(task.difference is not None for task in result.tasks.values()),
        intervals=any(found.low is not None for found in scores),
        unread_known=all(found.unread is not None for found in scores),
        unread=any(found.unread for found in scores),
        bits=any(found.bits_per_byte is not None for found in scores),
        starred=any(found.much_unread for found in scores),
        alike=alike,
        outcomes=list(_outcomes(result)),
        given_away=[_given_away(name, data) for name, data in given_away.items()],
        most=SHOWN,
        fewest=min((task.rows for task in result.tasks.values()), default=0),
        others=len(run.evaluations) - 1,
    )


SECTION = Section(title="Scores", order=20, render=_render)
