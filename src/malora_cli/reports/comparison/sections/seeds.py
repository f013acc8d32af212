"""What every seed gave: how far runs of one method lie apart, beside how far methods do."""

from __future__ import annotations

from statistics import stdev

from malora_cli.reports.charts import Axis, Line, task_ink, xy_chart
from malora_cli.reports.comparison.view import ComparisonView, Method
from malora_cli.reports.html import render
from malora_cli.reports.section import Section

_SIZE = (360, 230)
#: How far apart methods stand within a seed, so that none hides another, and how far all of them may.
_APART, _SPREAD = 0.12, 0.62

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% import "comparison/macros.html.j2" as c %}
<p class="lead">{{ view.measure|capitalize }} of every run. Runs of one seed stand together: they saw the same data in
the same order.</p>
{{ c.legend(values) }}
<div class="larger"><figure><figcaption><b>{{ view.measure|capitalize }} by seed</b>
<span class="num">{{ view.unit }}</span></figcaption>{{ svg }}</figure></div>
<details class="data"><summary>Data</summary><div class="scroll"><table class="compared">
<thead><tr><th>Method</th>{% for seed in seeds %}<th class="num">seed {{ seed }}</th>{% endfor %}
<th class="num">standard deviation</th></tr></thead><tbody>
{% for method, found in values.items() %}
<tr><th scope="row">{{ m.chip(method) }}</th>
{% for seed in seeds %}<td class="num">{{ view.written(found.get(seed)) }}</td>{% endfor %}
<td class="num">{{ "–" if found|length < 2 else view.around(spread(found.values()))[1:] }}</td></tr>
{% endfor %}
</tbody></table></div></details>
"""

Values = dict[Method, dict[int, float]]


def by_seed(view: ComparisonView) -> Values:
    """The endpoint of every run, by method and seed."""
    found = {method: {run.seed: view.endpoint(run) for run in it.runs} for method, it in view.known}
    kept = {
        method: {seed: value for seed, value in runs.items() if value is not None} for method, runs in found.items()
    }
    return {method: runs for method, runs in kept.items() if runs}


def _chart(view: ComparisonView, values: Values, seeds: list[int]) -> str:
    lines, others = [], max(len(values) - 1, 1)
    for place, (method, found) in enumerate(values.items()):
        aside = min(_APART * others, _SPREAD) * (place / others - 0.5)
        x = [index + aside for index, seed in enumerate(seeds) if seed in found]
        y = [found[seed] for seed in seeds if seed in found]
        ink = task_ink(method.slot)
        lines.append(Line(x, y, ink=ink, width=1.0, opacity=0.35))
        lines.append(Line(x, y, ink=ink, width=0, dots=True, marker=method.marker, size=8))
    step = -(-len(seeds) // 8)
    return xy_chart(
        lines,
        key="seeds",
        label=f"{view.measure} of every method and seed",
        x=Axis(-0.5, len(seeds) - 0.5, title="seed", ticks=[(i, str(seed)) for i, seed in enumerate(seeds)][::step]),
        y=view.axis([value for found in values.values() for value in found.values()], title=view.measure),
        size=_SIZE,
    )


def _render(view: ComparisonView) -> str | None:
    values = by_seed(view)
    seeds = [seed for seed in view.comparison.seeds if any(seed in found for found in values.values())]
    if len(seeds) < 2:  # Table 1 has said it
        return None
    svg = _chart(view, values, seeds)
    return render(_TEMPLATE, view=view, values=values, seeds=seeds, svg=svg, spread=lambda found: stdev(found))


SECTION = Section(title="Seeds", order=60, render=_render)
