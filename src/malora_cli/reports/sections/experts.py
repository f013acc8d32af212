"""Which experts each task uses, and how far that is from spreading evenly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import RunView

_TEMPLATE = """
{% import "macros.html.j2" as m %}
<p class="lead">To spread evenly over the experts, a task would have to move <b>{{ mean_far|percent }}</b> of its
assignments on average; most of all {{ m.chip(far_task) }} in {{ far_group }} ({{ most_far|percent }}).
{% if tasks|length > 1 %}Two tasks differ in {{ apart|percent }} of theirs.{% endif %}</p>
{% call(task) m.loads(groups, top) %}{{ m.chip(task) }}{% endcall %}

{{ m.some(view) -}}
<p class="note">Share of a task's (token, slot) assignments that each expert gets, in percent, on rows that
were not trained on, after {{ step|count }} steps. The experts of every router are ranked by their load over all tasks,
busiest first, before the mean over routers is taken: number 3 of one router has nothing to do with number 3 of
another.</p>
"""


def distance(shares: list[float], others: list[float]) -> float:
    """Total variation distance: the part of one distribution that has to move to make it the other, 0 to 1."""
    return sum(abs(a - b) for a, b in zip(shares, others, strict=True)) / 2


def from_uniform(shares: list[float]) -> float:
    """Total variation distance from equal shares."""
    return distance(shares, [1 / len(shares)] * len(shares))


def apart(groups: Iterable[Sequence[Sequence[float]]]) -> float:
    """Mean total variation distance of two tasks, over all pairs of tasks and layer groups.

    Sorting an expert's shares gives the sum of their differences over all pairs at once: among ``n`` of them the one of
    rank ``i``, from 0, is the larger in ``i`` pairs and the smaller in ``n - 1 - i``.

    Args:
        groups: Of each layer group the shares of every task.
    """
    total, pairs = 0.0, 0
    for tasks in groups:
        count = len(tasks)
        pairs += count * (count - 1) // 2
        for shares in zip(*tasks, strict=False):
            total += sum((2 * rank - count + 1) * share for rank, share in enumerate(sorted(shares))) / 2
    return total / pairs if pairs else 0.0


def _render(run: RunView) -> str | None:
    if run.expert_load is None:
        return None
    step, load = run.expert_load
    tasks = run.ordered(load)
    names = list(dict.fromkeys(group for task in tasks for group in load[task.name]))
    far = {(t, g): from_uniform(load[t.name][g]) for t in tasks for g in names if g in load[t.name]}
    if not far:
        return None
    (far_task, far_group), most_far = max(far.items(), key=lambda item: item[1])
    rows = {group: {task: load[task.name][group] for task in tasks if group in load[task.name]} for group in names}
    groups = [
        (group, len(next(iter(found.values()))), [(task, found[task]) for task in run.shown(found)])
        for group, found in rows.items()
    ]
    return render(
        _TEMPLATE,
        view=run,
        tasks=tasks,
        groups=groups,
        top=max(share for found in rows.values() for shares in found.values() for share in shares),
        mean_far=fmean(far.values()),
        far_task=far_task,
        far_group=far_group,
        most_far=most_far,
        apart=apart([list(found.values()) for found in rows.values()]),
        step=step,
    )


SECTION = Section(title="Expert load", order=50, render=_render)
