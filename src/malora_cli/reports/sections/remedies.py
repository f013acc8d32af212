"""What was done against tasks getting in each other's way, and what it came to."""

from __future__ import annotations

from typing import Any

from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import RunView

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% for line in lines %}<p>{{ line }}</p>{% endfor %}
<div class="scroll"><table>
<thead><tr><th>Task</th><th class="num">share at first</th><th class="num">share in the end</th>
<th class="num">weight of its loss</th><th class="num">stopped at step</th><th class="num">best at step</th></tr>
</thead>
<tbody>
{% for row in rows %}
<tr><th scope="row">{{ m.chip(row.task) }}</th><td class="num">{{ row.first|percent }}</td>
<td class="num">{{ row.last|percent }}</td><td class="num">{{ "%.3g"|format(row.weight) }}</td>
<td class="num">{{ row.stopped|count if row.stopped is not none else "–" }}</td>
<td class="num">{{ row.best|count if row.best is not none else "–" }}</td></tr>
{% endfor %}
</tbody></table></div>
{{- m.some(view) -}}
"""


def _lines(run: RunView, mix: dict[str, Any], static: dict[str, float]) -> list[str]:
    """A line for everything that was done; remedies of the recipe have written theirs into the manifest."""
    lines = []
    if mix.get("weighting") == "temperature":
        lines.append(
            f"Tasks are drawn by their size to the power of 1 / {mix.get('temperature')} (Arivazhagan et al., "
            "arXiv 1907.05019)."
        )
    if set(static.values()) - {1.0}:
        lines.append("The recipe weighs the tasks' losses.")
    return [*lines, *run.manifest.remedies.values()]


def _mapping(value: Any) -> dict[Any, Any]:
    """A part of a recipe that should be a mapping; a run folder may hold anything."""
    return value if isinstance(value, dict) else {}


def _render(run: RunView) -> str | None:
    mix, remedies = _mapping(run.recipe.get("mix")), _mapping(run.recipe.get("remedies"))
    weights = {name: _mapping(task).get("loss_weight", 1.0) for name, task in _mapping(mix.get("tasks")).items()}
    static = {name: float(weight) for name, weight in weights.items() if isinstance(weight, int | float)}
    lines = _lines(run, mix, static)
    if not lines:
        return None
    patience = _mapping(remedies.get("patience")).get("evaluations")
    counted = patience if isinstance(patience, int) else None
    log = run.log

    def row(name: str) -> dict[str, Any]:
        first, best = run.manifest.task_share.get(name, 0.0), log.lows.best.get(name)
        return {
            "task": run.tasks[name],
            "first": first,
            "last": log.task_share.get(name, 0.0) if log.task_share else first,
            "weight": static.get(name, 1.0) * log.loss_weight.get(name, 1.0),
            "stopped": log.lows.stopped_at(name, counted) if counted else None,
            "best": best[0] if best is not None else None,
        }

    return render(_TEMPLATE, lines=lines, view=run, rows=[row(task.name) for task in run.shown(run.tasks.values())])


SECTION = Section(title="Remedies", order=46, render=_render)
