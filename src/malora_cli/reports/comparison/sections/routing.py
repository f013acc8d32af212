"""How methods with routers use their experts: load by task, certainty of the gates, what experts have in common."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from malora_cli.reports.charts import Axis, Line, task_ink, xy_chart
from malora_cli.reports.comparison.runs import Routing
from malora_cli.reports.comparison.view import ComparisonView, Method
from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.sections.experts import apart, from_uniform
from malora_cli.reports.sections.similarity import both_sides, by_linear, filled, mean_similarity, mean_spectrum
from malora_cli.reports.view import SHOWN
from malora_cli.results import ExpertGeometry

_SIZE = (360, 230)
_COLUMNS = ("method", "seeds", "task", "layers", "linears", "metric", "place", "value")
#: Places of a spectrum that its table shows, as shares of its length.
_PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)

_NOTHING = """
<p class="missing">None of these runs keeps anything of routers: no method has any, or the run folders are not here.</p>
"""
_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% import "comparison/macros.html.j2" as c %}
<p class="lead">How methods with routers use their experts on rows that were not trained on: means over seeds, and over
tasks and layers where not said otherwise.</p>
<div class="scroll"><table class="compared">
<thead><tr><th>Method</th><th class="num">from even load</th><th class="num">two tasks apart</th>
<th class="num">gate entropy</th><th class="num">similarity, down</th><th class="num">up</th>
<th class="num">rank used, down</th><th class="num">up</th></tr></thead><tbody>
{% for method, row in rows %}
<tr><th scope="row">{{ m.chip(method) }}</th>
{% for value in row.shares() %}<td class="num">{{ "–" if value is none else value|percent }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<p class="note">From even load: the share of a task’s assignments that would have to move for all experts to get as
many. Two tasks apart: the share that would have to move for one to use the experts as the other. Gate entropy: 100% is
an even choice. Similarity: mean canonical correlation of two experts. Rank used: directions that all experts of a
linear amount to, of those that they could.</p>
{% if charts %}
{{ c.legend(spectra) }}
<div class="larger">
{% for title, svg in charts %}
<figure><figcaption><b>{{ title }}</b><span class="num">singular values over their mean</span></figcaption>{{ svg }}
</figure>
{% endfor %}
</div>
<details class="data"><summary>Data<span class="quiet">singular values over their mean</span></summary>
<div class="scroll"><table class="compared">
<thead><tr><th>Method</th><th>projections</th>
{% for place in places %}<th class="num">{{ (100 * place)|round|int }}%</th>{% endfor %}</tr></thead><tbody>
{% for method, sides in spectra.items() %}{% for side, values in sides.items() %}
<tr><th scope="row">{{ m.chip(method) }}</th><td>{{ side }}</td>
{% for place in places %}<td class="num">{{ "%.3f"|format(values[(place * (values|length - 1))|round|int]) }}</td>
{% endfor %}</tr>
{% endfor %}{% endfor %}
</tbody></table></div></details>
{% endif %}
{% for method, it, groups, top in details %}
<details class="data"><summary>{{ m.chip(method) }}<span class="quiet">load, entropy and similarity by layers</span>
</summary>
{% if groups %}
<h3>Expert load</h3>
{% call(task) m.loads(groups, top) %}<span class="chip">{{ m.broken(task) }}</span>{% endcall %}

<p class="note">Share of a task’s (token, slot) assignments that each expert gets, in percent. Experts are ranked by
their load within every router and run before means are taken.</p>
{% endif %}
{% if it.entropy %}
<h3>Gate entropy, percent of an even choice</h3>
{% call(task) m.entropies(layers(it), (it.entropy.items()|list)[:most]) %}<span class="chip">{{ m.broken(task) }}</span>
{%- endcall %}

{% endif %}
{% if it.experts %}
<h3>What experts share</h3>
{{ m.projections(by_linear(it.experts)) }}
{% endif %}
</details>
{% endfor %}
{{ c.download("routing.csv", "all of this", csv) }}
"""

#: Of every method the mean spectra of its experts' down- and up-projections.
Spectra = Mapping[Method, Mapping[str, list[float]]]


@dataclass(frozen=True)
class Summary:
    """What the routers of a method amount to, as shares; None where it was not measured."""

    from_even: float | None
    apart: float | None
    entropy: float | None
    similarity: tuple[float | None, float | None]
    rank: tuple[float | None, float | None]

    @classmethod
    def of(cls, it: Routing) -> Summary:
        """That of one method."""
        shares = [shares for groups in it.load.values() for shares in groups.values()]
        by_group = [[load[group] for load in it.load.values()] for group in next(iter(it.load.values()), {})]
        gates = [value for groups in it.entropy.values() for value in groups.values()]
        sides = {} if it.experts is None else both_sides(it.experts)
        down, up = sides.get("down", []), sides.get("up", [])
        return cls(
            from_even=fmean(map(from_uniform, shares)) if shares else None,
            apart=apart(by_group) if len(it.load) > 1 else None,
            entropy=fmean(gates) if gates else None,
            similarity=(mean_similarity(down), mean_similarity(up)),
            rank=(filled(down) if down else None, filled(up) if up else None),
        )

    def shares(self) -> list[float | None]:
        """All of it, in the order of the table."""
        return [self.from_even, self.apart, self.entropy, *self.similarity, *self.rank]


def _groups(view: ComparisonView, it: Routing) -> list[tuple[str, int, list[tuple[str, list[float]]]]]:
    """Of every layer group its name, its experts, and the load by task; of very many tasks the first."""
    tasks = [task for task in view.tasks if task in it.load][:SHOWN]
    names = dict.fromkeys(group for task in tasks for group in it.load[task])
    rows = {group: [(task, it.load[task][group]) for task in tasks if group in it.load[task]] for group in names}
    return [(group, len(found[0][1]), found) for group, found in rows.items()]


def _layers(it: Routing) -> list[str]:
    return list(dict.fromkeys(group for groups in it.entropy.values() for group in groups))


def spectra(routing: Mapping[Method, Routing]) -> dict[Method, dict[str, list[float]]]:
    """Mean spectra of those methods whose experts were analysed."""
    known = {method: it.experts for method, it in routing.items() if it.experts is not None and it.experts.groups}
    return {
        method: {side: mean_spectrum(found) for side, found in both_sides(it).items()} for method, it in known.items()
    }


def _chart(found: Spectra, side: str) -> tuple[str, Markup]:
    lines, heights = list[Line](), [1.0]
    for method, sides in found.items():
        values, ink = sides[side], task_ink(method.slot)
        x = [100 * place / (len(values) - 1) for place in range(len(values))]
        lines += [
            Line(x, values, ink=ink),
            Line(x[::6], values[::6], ink=ink, width=0, dots=True, marker=method.marker),
        ]
        heights += values
    svg = xy_chart(
        lines,
        key=f"spectra-{side}",
        label=f"Singular values of the {side}-projections of every method’s experts",
        x=Axis(-3, 103, title="place, percent of all"),
        y=Axis(0.0, 1.08 * max(heights)),
        size=_SIZE,
    )
    return f"{side.capitalize()}-projections", svg


def figures(routing: Mapping[Method, Routing]) -> Iterator[tuple[object, ...]]:
    """All figures of the section, as lines of a CSV file with the heads ``_COLUMNS``."""
    for method, it in routing.items():
        told = (method.name, " ".join(map(str, it.seeds)))
        for task, groups in it.load.items():
            for group, shares in groups.items():
                yield from ((*told, task, group, "", "expert load", i, share) for i, share in enumerate(shares, 1))
        for task, entropy in it.entropy.items():
            yield from ((*told, task, group, "", "gate entropy", "", value) for group, value in entropy.items())
        for target, group, metric, value in _of_experts(it.experts):
            yield (*told, "", group, target, metric, "", value)
        for side, values in spectra({method: it}).get(method, {}).items():
            yield from ((*told, "", "", "", f"singular value, {side}", i, value) for i, value in enumerate(values, 1))


def _of_experts(experts: ExpertGeometry | None) -> Iterator[tuple[str, str, str, float | None]]:
    for target, group, sides in by_linear(experts) if experts is not None else ():
        for name, side in zip(("down", "up"), sides, strict=True):
            yield target, group, f"similarity, {name}", side.similarity
            yield target, group, f"effective rank, {name}", side.effective_rank


def routing_csv(routing: Mapping[Method, Routing]) -> bytes:
    """All figures of the section as a file."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(
        [f"{value:.6g}" if isinstance(value, float) else value for value in line] for line in figures(routing)
    )
    return file.getvalue().encode("utf-8", errors="backslashreplace")


def _render(view: ComparisonView) -> str | None:
    if view.runs is None or not view.known:
        return None
    if not view.routing:
        return render(_NOTHING)
    found = spectra(view.routing)
    details = [(method, it, _groups(view, it)) for method, it in view.routing.items()]
    loads = [share for _, _, groups in details for _, _, rows in groups for _, shares in rows for share in shares]
    return render(
        _TEMPLATE,
        rows=[(method, Summary.of(it)) for method, it in view.routing.items()],
        spectra=found,
        places=_PLACES,
        charts=[_chart(found, side) for side in ("down", "up")] if found else [],
        details=[(*one, max(loads, default=1.0)) for one in details],
        layers=_layers,
        most=SHOWN,
        by_linear=by_linear,
        csv=routing_csv(view.routing),
    )


SECTION = Section(title="Routing", order=62, render=_render)
