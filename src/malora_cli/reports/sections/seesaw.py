"""Who gained and who lost from one evaluation to the next, and which tasks were better once than they are now."""

from __future__ import annotations

from itertools import pairwise

from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import SHOWN, RunView
from malora_cli.results import Change, EvalEvent, change, imbalance

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% macro listed(slips) %}
{% for slip in slips[:most] %}{{ m.chip(view.tasks[slip.task]) }} ({{ slip.change.nats|signed }} since step
{{ slip.best_step }}){{ ", " if not loop.last }}{% endfor %}
{{- " and " ~ (slips|length - most)|plural("other") if slips|length > most -}}
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
{% for task, cells, total in rows if task in shown %}
<tr><th scope="row">{{ m.chip(task) }}</th>
{% for cell in cells %}{{ heat(cell) }}{% endfor %}<td class="spacer"></td>{{ heat(total) }}</tr>
{% endfor %}
</tbody>
<tfoot>
{% for word in ("gained", "lost") %}{% set which = loop.index0 %}
<tr><th scope="row">{{ word }}</th>{% for counts in tally %}{% if loop.last %}<td class="spacer"></td>{% endif %}
<td>{{ counts[which] }}</td>{% endfor %}</tr>
{% endfor %}
{% if spread[-1] is not none %}
<tr><th scope="row">imbalance</th>{% for value in spread %}
<td>{{ "–" if value is none else "%.3f"|format(value) }}</td>{% endfor %}<td class="spacer"></td><td></td></tr>
{% endif %}
</tfoot>
</table></div>
<p class="legend"><span><i class="swatch gain"></i>gained: loss fell</span>
<span><i class="swatch loss"></i>lost: loss rose</span>
{% if errors %}<span><b class="clear">●</b>more than its standard error</span>{% endif %}</p>
{{ m.some(view) -}}
<p class="note">Change of the {{ view.watched }}, nats a token, from one evaluation to the next (columns are steps).
{% if view.log.evals|length < view.log.evaluated %}
The columns are of {{ view.log.evals|length }} of {{ view.log.evaluated|count }} evaluations, the first and the last
among them; what a task lost since it was best is of all of them.
{% endif %}
{% if errors %}The standard error is that of two independent samples; the rows are the same each time, so it is on the
careful side. A mark is a hint and no test.
{% else %}No standard errors were measured, so small changes may be chance.{% endif %}
{% if columns|length > 1 %} The colours are scaled to what came after the first interval.{% endif %}
{% if spread[-1] is not none %} Imbalance: standard deviation over tasks of the loss relative to that at step
{{ columns[0][0] }}, at the end of each interval; 0 where all tasks lost the same part of it.{% endif %}</p>
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


def _row(pairs: list[tuple[EvalEvent, EvalEvent]], name: str) -> tuple[list[Change | None], Change | None]:
    """A task's change over every interval, and over all of them."""
    cells = [change(before.tasks.get(name), after.tasks.get(name)) for before, after in pairs]
    return cells, change(pairs[0][0].tasks.get(name), pairs[-1][1].tasks.get(name)) if pairs else None


def _render(run: RunView) -> str | None:
    evals = run.log.evals
    if not evals:
        return None
    pairs = list(pairwise(evals))
    tasks = run.ordered(name for event in evals for name in event.tasks)
    rows = [(task, *_row(pairs, task.name)) for task in tasks]
    # Leaving the base model behind dwarfs all that follows; colours are for what follows.
    later = [abs(c.nats) for _, cells, _ in rows for c in (cells[1:] or cells) if c is not None]
    scale = max(later, default=0.0) or 1.0

    def heat(cell: Change | None) -> str:
        strength = round(62 * min(1.0, abs(cell.nats) / scale) ** 0.5) if cell else 0
        return render(_CELL, cell=cell, heat=strength)

    found = run.log.lows.slips()
    by_column = [[cells[i] for _, cells, _ in rows] for i in range(len(pairs))]
    tally = [_tally(changes) for changes in (*by_column, [total for _, _, total in rows])]
    return render(
        _TEMPLATE,
        columns=[(before.step, after.step) for before, after in pairs],
        rows=rows,
        view=run,
        shown=run.shown(tasks),
        most=SHOWN,
        spread=[imbalance(evals[0], after) for _, after in pairs],
        heat=heat,
        tally=tally,
        mixed=sum(up > 0 and down > 0 for up, down in tally[:-1]),
        # Where nothing says how large chance is, every slip is named as one.
        sure=[slip for slip in found if slip.change.clear or slip.change.error is None],
        unsure=[slip for slip in found if not slip.change.clear and slip.change.error is not None],
        errors=any(c is not None and c.error is not None for changes in by_column for c in changes),
    )


SECTION = Section(title="Seesaw", order=40, render=_render)
