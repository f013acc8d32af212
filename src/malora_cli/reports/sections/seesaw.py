"""Who gained and who lost from one evaluation to the next, and which tasks were better once than they are now."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import hypot

from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import RunView, Task
from malora_cli.results import EvalEvent, TaskLoss


@dataclass(frozen=True)
class Change:
    """A task's held-out loss at one evaluation against that at another.

    Args:
        nats: Later minus earlier, nats a token: below zero is a gain.
        error: Standard error of that difference as if the two were independent, where both were measured.
    """

    nats: float
    error: float | None

    @property
    def clear(self) -> bool:
        """Whether the change exceeds its standard error."""
        return self.error is not None and abs(self.nats) > self.error


@dataclass(frozen=True)
class Slip:
    """A task that ended worse than it once was."""

    task: Task
    change: Change
    best_step: int


def change(before: TaskLoss | None, after: TaskLoss | None) -> Change | None:
    """The difference of two measurements, None where one of them is missing."""
    if before is None or after is None or before.loss is None or after.loss is None:
        return None
    known = before.stderr_nats is not None and after.stderr_nats is not None
    error = hypot(before.stderr_nats or 0.0, after.stderr_nats or 0.0) if known else None
    return Change(after.loss - before.loss, error)


def slips(run: RunView) -> list[Slip]:
    """Tasks whose last held-out loss is above their lowest, the biggest slip first."""
    found = []
    for name, task in run.tasks.items():
        measured = [event for event in run.evals if name in event.tasks and event.tasks[name].loss is not None]
        if measured:
            best = min(measured, key=lambda event: event.tasks[name].loss or 0.0)
            since = change(best.tasks[name], measured[-1].tasks[name])
            if since is not None and since.nats > 0:
                found.append(Slip(task, since, best.step))
    return sorted(found, key=lambda slip: -slip.change.nats)


_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% macro listed(slips) %}
{% for slip in slips %}{{ m.chip(slip.task) }} ({{ slip.change.nats|signed }} since step {{ slip.best_step }})
{{- ", " if not loop.last }}{% endfor %}
{% endmacro %}
{% if not columns %}
{{ m.missing("Who gains and who loses shows from two evaluations on: set train.eval_every in the recipe.") }}
{% else %}
<p class="lead">
{% if sure %}<b>{{ sure|length }} of {{ rows|length|plural("task") }} ended worse than at best:</b> {{ listed(sure) }}.
{% else %}<b>No task ended worse than at best{{ " by more than its standard error" if unsure }}.</b>{% endif %}{{ " " }}
{% if unsure %}Within the standard error: {{ listed(unsure) }}.{% endif %}{{ " " }}
{% if columns|length > 1 and rows|length > 1 %}
In {{ mixed }} of {{ columns|length }} intervals some tasks gained while others lost.
{% endif %}
</p>
<div class="scroll"><table class="heat" style="--columns:{{ columns|length + 1 }}">
<thead><tr><th>Task</th>{% for before, after in columns %}<th class="num">{{ before }}–{{ after }}</th>{% endfor %}
<td class="spacer"></td><th class="num">{{ columns[0][0] }}–{{ columns[-1][1] }}</th></tr></thead>
<tbody>
{% for task, cells, total in rows %}
<tr><th scope="row">{{ m.chip(task) }}</th>
{% for cell in cells %}{{ heat(cell) }}{% endfor %}<td class="spacer"></td>{{ heat(total) }}</tr>
{% endfor %}
</tbody>
<tfoot>
{% for word in ("gained", "lost") %}{% set which = loop.index0 %}
<tr><th scope="row">{{ word }}</th>{% for counts in tally %}{% if loop.last %}<td class="spacer"></td>{% endif %}
<td>{{ counts[which] }}</td>{% endfor %}</tr>
{% endfor %}
</tfoot>
</table></div>
<p class="legend"><span><i class="swatch gain"></i>gained: loss fell</span>
<span><i class="swatch loss"></i>lost: loss rose</span>
{% if errors %}<span><b class="clear">●</b>more than its standard error</span>{% endif %}</p>
<p class="note">Change of the held-out loss, nats a token, from one evaluation to the next (columns are steps).
{% if errors %}The standard error is that of two independent samples; the rows are the same each time, so it is on the
careful side. A mark is a hint and no test.
{% else %}No standard errors were measured, so small changes may be chance.{% endif %}
{% if columns|length > 1 %} The colours are scaled to what came after the first interval.{% endif %}</p>
{% endif %}
"""

_CELL = """
{% if cell is none %}<td class="cell">–</td>
{% else %}<td class="cell {{ "gain" if cell.nats < 0 else "loss" if cell.nats > 0 }}" style="--heat:{{ heat }}%"
{% if cell.error is not none %}title="standard error {{ cell.error|nats }}"{% endif %}>{{ cell.nats|signed }}
{%- if cell.clear %}<b class="clear">●</b>{% endif %}</td>{% endif %}
"""


def _tally(changes: list[Change | None]) -> tuple[int, int]:
    return sum(c is not None and c.nats < 0 for c in changes), sum(c is not None and c.nats > 0 for c in changes)


def _row(
    run: RunView, pairs: list[tuple[EvalEvent, EvalEvent]], name: str
) -> tuple[list[Change | None], Change | None]:
    """A task's change over every interval, and over all of them."""
    cells = [change(before.tasks.get(name), after.tasks.get(name)) for before, after in pairs]
    return cells, change(run.evals[0].tasks.get(name), run.evals[-1].tasks.get(name))


def _render(run: RunView) -> str | None:
    if not run.evals:
        return None
    pairs = list(pairwise(run.evals))
    tasks = run.ordered(name for event in run.evals for name in event.tasks)
    rows = [(task, *_row(run, pairs, task.name)) for task in tasks]
    # Leaving the base model behind dwarfs all that follows; colours are for what follows.
    later = [abs(c.nats) for _, cells, _ in rows for c in (cells[1:] or cells) if c is not None]
    scale = max(later, default=0.0) or 1.0

    def heat(cell: Change | None) -> str:
        strength = round(62 * min(1.0, abs(cell.nats) / scale) ** 0.5) if cell else 0
        return render(_CELL, cell=cell, heat=strength)

    found = slips(run)
    by_column = [[cells[i] for _, cells, _ in rows] for i in range(len(pairs))]
    tally = [_tally(changes) for changes in (*by_column, [total for _, _, total in rows])]
    return render(
        _TEMPLATE,
        columns=[(before.step, after.step) for before, after in pairs],
        rows=rows,
        heat=heat,
        tally=tally,
        mixed=sum(up > 0 and down > 0 for up, down in tally[:-1]),
        # Where nothing says how large chance is, every slip is named as one.
        sure=[slip for slip in found if slip.change.clear or slip.change.error is None],
        unsure=[slip for slip in found if not slip.change.clear and slip.change.error is not None],
        errors=any(c is not None and c.error is not None for changes in by_column for c in changes),
    )


SECTION = Section(title="Seesaw", order=40, render=_render)
