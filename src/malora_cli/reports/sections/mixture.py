"""What was trained on: the tasks, how many rows each has and how much of the training each gets."""

from __future__ import annotations

import csv
import io

from malora_cli.characters import plural
from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import SHOWN, RunView, Task

#: Tasks of the plain list, about 100 bytes each.
_LISTED = 5000
_COLUMNS = (
    *("task", "domain", "share", "train rows", "validation rows", "test rows", "examples seen"),
    *("first loss", "lowest loss", "newest loss", "base score", "score"),
)

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% if description %}<p class="lead">{{ description }}</p>{% endif %}
<div class="scroll"><table class="mixture">
<thead><tr><th>Task</th><th>Domain</th><th>Share of the training examples</th><th class="num">train rows</th>
<th class="num">validation rows</th><th class="num">test rows</th>
{% if seen %}<th class="num">examples seen</th><th class="num">passes</th>{% endif %}
</tr></thead>
<tbody>
{% for task in view.shown(tasks) %}
{% set share = view.manifest.task_share.get(task.name, 0) %}
{% set train = view.manifest.train_data.get(task.name) %}
{% set validation = view.manifest.validation_data.get(task.name) %}
{% set test = view.manifest.test_data.get(task.name) %}
<tr><th scope="row">{{ m.chip(task) }}</th><td>{{ task.domain }}</td>
<td class="share"><span class="bar" style="--w:{{ (share / top)|css }};--c:{{ task.colour }}"></span>
{{- share|percent }}</td>
<td class="num">{{ train.rows|count if train else "–" }}</td>
<td class="num">{{ validation.rows|count if validation else "–" }}</td>
<td class="num">{{ test.rows|count if test else "–" }}</td>
{% if seen %}<td class="num">{{ seen.get(task.name, 0)|count }}</td>
<td class="num">{{ "%.2f"|format(seen.get(task.name, 0) / train.rows) if train and train.rows else "–" }}</td>
{% endif %}</tr>
{% endfor %}
</tbody>
<tfoot><tr><th scope="row">{{ tasks|length|plural("task") }}</th><td>{{ domains|plural("domain") }}</td><td></td>
{% for total in totals %}<td class="num">{{ total|count }}</td>{% endfor %}
{% if seen %}<td class="num">{{ seen.values()|sum|count }}</td><td></td>{% endif %}</tr></tfoot>
</table></div>
{% if listed %}
{{ m.some(view) -}}
<details><summary>Every task<span class="quiet">as CSV; {{ view.watched }} in nats a token</span></summary>
<pre class="listing">{{ listed }}</pre></details>
{% endif %}
{% for line in unused[:most] %}<p>{{ line }}</p>{% endfor %}
{% if unused|length > most %}<p>{{ (unused|length - most)|count }} more such lines: see <code>manifest.json</code>.</p>
{% endif %}
"""


def _listed(run: RunView) -> str:
    """Every task's figures, one line each, without what a table costs of a page."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    tasks = list(run.tasks.values())
    writer.writerows(_figures(run, task) for task in tasks[:_LISTED])
    rest = f"{len(tasks) - _LISTED:,} more tasks are in manifest.json and metrics.jsonl\n" if tasks[_LISTED:] else ""
    return file.getvalue() + rest


def _figures(run: RunView, task: Task) -> list[str]:
    manifest, lows = run.manifest, run.log.lows
    splits = (manifest.train_data, manifest.validation_data, manifest.test_data)
    first = run.log.evals[0].tasks.get(task.name) if run.log.evals else None
    best, newest = lows.best.get(task.name), lows.newest.get(task.name)
    scores = run.evaluation.tasks.get(task.name) if run.evaluation is not None else None
    figures: list[float | None] = [
        manifest.task_share.get(task.name, 0.0),
        *(split[task.name].rows if task.name in split else None for split in splits),
        run.log.examples[task.name],
        first.loss if first else None,
        best[1].loss if best else None,
        newest.loss if newest else None,
        scores.against.score if scores and scores.against else None,
        scores.model.score if scores else None,
    ]
    return [task.name, task.domain, *("" if value is None else _number(value) for value in figures)]


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _render(run: RunView) -> str | None:
    if not run.tasks:
        return None
    mix = run.recipe.get("mix")
    manifest = run.manifest
    splits = {"training": manifest.train_data, "validation": manifest.validation_data, "test": manifest.test_data}
    unused = [
        f"{plural(rows.rows, f'{split} row')} of {name} {'was' if rows.rows == 1 else 'were'} not used: {rows.reason}."
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
        seen=run.log.examples,
        unused=unused,
        most=SHOWN,
        listed=_listed(run) if run.crowded else None,
        totals=[sum(data.rows for data in tasks.values()) for tasks in splits.values()],
        description=mix.get("description") if isinstance(mix, dict) else None,
    )


SECTION = Section(title="Mixture", order=70, render=_render)
