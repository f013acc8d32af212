"""What was trained on: the tasks, how many rows each has and how much of the training each gets."""

from __future__ import annotations

from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import RunView

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% if description %}<p class="lead">{{ description }}</p>{% endif %}
<div class="scroll"><table class="mixture">
<thead><tr><th>Task</th><th>Domain</th><th>Share of the training examples</th><th class="num">train rows</th>
<th class="num">test rows</th>{% if seen %}<th class="num">examples seen</th><th class="num">passes</th>{% endif %}
</tr></thead>
<tbody>
{% for task in tasks %}
{% set share = view.manifest.task_share.get(task.name, 0) %}
{% set train = view.manifest.train_data.get(task.name) %}
{% set test = view.manifest.test_data.get(task.name) %}
<tr><th scope="row">{{ m.chip(task) }}</th><td>{{ task.domain }}</td>
<td class="share"><span class="bar" style="--w:{{ (share / top)|css }};--c:{{ task.colour }}"></span>
{{- share|percent }}</td>
<td class="num">{{ train.rows|count if train else "–" }}</td>
<td class="num">{{ test.rows|count if test else "–" }}</td>
{% if seen %}<td class="num">{{ seen.get(task.name, 0)|count }}</td>
<td class="num">{{ "%.2f"|format(seen.get(task.name, 0) / train.rows) if train and train.rows else "–" }}</td>
{% endif %}</tr>
{% endfor %}
</tbody>
<tfoot><tr><th scope="row">{{ tasks|length|plural("task") }}</th><td>{{ domains|plural("domain") }}</td><td></td>
<td class="num">{{ train_rows|count }}</td><td class="num">{{ test_rows|count }}</td>
{% if seen %}<td class="num">{{ seen.values()|sum|count }}</td><td></td>{% endif %}</tr></tfoot>
</table></div>
{% for line in unused %}<p>{{ line }}</p>{% endfor %}
"""


def _render(run: RunView) -> str | None:
    if not run.tasks:
        return None
    seen: dict[str, int] = {}
    for event in run.train:
        for name, loss in event.tasks.items():
            seen[name] = seen.get(name, 0) + loss.examples
    mix = run.recipe.get("mix")
    splits = {"training": run.manifest.train_data, "test": run.manifest.test_data}
    unused = [
        f"{rows.rows:,} {split} rows of {name} were not used: {rows.reason}."
        for split, tasks in splits.items()
        for name, data in tasks.items()
        for rows in data.unused
    ]
    return render(
        _TEMPLATE,
        view=run,
        tasks=list(run.tasks.values()),
        domains=len({task.domain for task in run.tasks.values()}),
        top=max(run.manifest.task_share.values(), default=0.0) or 1.0,
        seen=seen,
        unused=unused,
        train_rows=sum(data.rows for data in run.manifest.train_data.values()),
        test_rows=sum(data.rows for data in run.manifest.test_data.values()),
        description=mix.get("description") if isinstance(mix, dict) else None,
    )


SECTION = Section(title="Mixture", order=70, render=_render)
