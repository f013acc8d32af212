"""What a better endpoint costs: parameters, and seconds a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from malora_cli.reports.charts import Axis, Line, task_ink, xy_chart
from malora_cli.reports.comparison.view import ComparisonView, Method
from malora_cli.reports.html import render, short
from malora_cli.reports.section import Section
from malora_cli.results.comparison import MethodResult

_SIZE = (360, 230)
#: From this factor between the largest and the smallest on, an axis is logarithmic.
_LOG = 5.0

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% import "comparison/macros.html.j2" as c %}
<p class="lead">{{ view.measure|capitalize }} against cost; {{ "upper" if view.is_score else "lower" }} left is better.
Bars are 95% intervals.</p>
{{ c.legend(methods) }}
<div class="larger">
{% for title, svg in charts %}
<figure><figcaption><b>{{ title }}</b></figcaption>{{ svg }}</figure>
{% endfor %}
</div>
<details class="data"><summary>Data</summary><div class="scroll"><table class="compared">
<thead><tr><th>Method</th><th class="num">{{ view.measure }}, {{ view.unit }}</th><th class="num">parameters</th>
<th class="num">seconds a step</th></tr></thead><tbody>
{% for method, it, value in view.measured %}
<tr><th scope="row">{{ m.chip(method) }}</th><td class="num">{{ view.written(value) }} <span class="about">
{{- view.level(it) }}</span></td><td class="num">{{ it.parameters|count }}</td>
<td class="num">{{ "–" if it.seconds_per_step is none else "%.3g"|format(it.seconds_per_step) }}</td></tr>
{% endfor %}
</tbody></table></div></details>
<p class="note">Seconds a step are medians over the steps of these runs.</p>
"""


@dataclass(frozen=True)
class Point:
    """A method by what it costs and what it reached."""

    method: Method
    cost: float
    value: float
    ends: list[float]

    def lines(self) -> list[Line]:
        """Its interval, and its mark on top."""
        ink = task_ink(self.method.slot)
        bar = Line([self.cost] * len(self.ends), self.ends, ink=ink, width=1.4, opacity=0.6)
        return [bar, Line([self.cost], [self.value], ink=ink, width=0, dots=True, marker=self.method.marker, size=10)]


def points(view: ComparisonView, cost: Callable[[MethodResult], float | None]) -> list[Point]:
    """The methods whose endpoint and cost are both known; a cost of nothing has no place beside others."""
    found = []
    for method, it, value in view.measured:
        if paid := cost(it):
            found.append(Point(method, paid, value, [end for end in (it.low, it.high) if end is not None]))
    return found


def _chart(view: ComparisonView, found: list[Point], *, key: str, title: str, form: Callable[[float], str]) -> str:
    costs = [point.cost for point in found]
    return xy_chart(
        [line for point in found for line in point.lines()],
        key=key,
        label=f"{view.measure} of every method against {title}",
        x=Axis.over(costs, title=title, form=form, log=max(costs) >= _LOG * min(costs)),
        y=view.axis([height for point in found for height in (point.value, *point.ends)], title=view.measure),
        size=_SIZE,
    )


def _render(view: ComparisonView) -> str | None:
    charts, methods = [], dict[Method, None]()
    for key, (title, cost, form) in _COSTS.items():
        found = points(view, cost)
        if len(found) > 1:
            methods.update(dict.fromkeys(point.method for point in found))
            charts.append((title.capitalize(), _chart(view, found, key=f"cost-{key}", title=title, form=form)))
    return render(_TEMPLATE, view=view, charts=charts, methods=methods) if charts else None


_COSTS: dict[str, tuple[str, Callable[[MethodResult], float | None], Callable[[float], str]]] = {
    "parameters": ("parameters", lambda it: it.parameters, short),
    "seconds": ("seconds a step", lambda it: it.seconds_per_step, "{:.3g}".format),
}

SECTION = Section(title="Trade-offs", order=50, render=_render)
