"""How far the tasks pull against each other under every method, along the training."""

from __future__ import annotations

from malora_cli.reports.charts import Axis, Line, task_ink, xy_chart
from malora_cli.reports.comparison.view import ComparisonView
from malora_cli.reports.html import render
from malora_cli.reports.section import Section

_SIZE = (360, 230)

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% import "comparison/macros.html.j2" as c %}
<p class="lead">Mean cosine of two tasks’ gradients on training rows, over pairs of tasks and over seeds; below 0 a step
for one task undoes some of another’s.</p>
{{ c.legend(view.conflict) }}
<div class="larger"><figure><figcaption><b>Cosine by step</b></figcaption>{{ svg }}</figure></div>
<details class="data"><summary>Data</summary><div class="scroll"><table class="compared">
<thead><tr><th>Method</th>{% for step in steps %}<th class="num">step {{ step|count }}</th>{% endfor %}</tr></thead>
<tbody>
{% for method, found in view.conflict.items() %}
<tr><th scope="row">{{ m.chip(method) }}</th>
{% for step in steps %}<td class="num">{{ "–" if step not in found else "%.3f"|format(found[step]) }}</td>{% endfor %}
</tr>
{% endfor %}
</tbody></table></div></details>
<p class="note">Each method has its own adapter, so gradients are with respect to other parameters: what a curve does
along the training tells more than how high it lies.</p>
"""


def _render(view: ComparisonView) -> str | None:
    found = view.conflict
    if not found:
        return None
    steps = sorted({step for cosines in found.values() for step in cosines})
    lines = [
        Line(
            list(cosines),
            list(cosines.values()),
            ink=task_ink(method.slot),
            width=1.8,
            dots=True,
            marker=method.marker,
            size=7,
        )
        for method, cosines in found.items()
    ]
    svg = xy_chart(
        lines,
        key="conflict",
        label="Mean cosine of the tasks' gradients of every method over steps",
        x=Axis.over([float(step) for step in steps], title="step", form=lambda x: f"{x:,.0f}"),
        y=Axis.over([value for cosines in found.values() for value in cosines.values()], title="cosine"),
        size=_SIZE,
    )
    return render(_TEMPLATE, view=view, svg=svg, steps=steps)


SECTION = Section(title="Gradient conflict", order=57, render=_render)
