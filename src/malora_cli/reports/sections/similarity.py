"""What the trained experts have in common: similarity of their projections, and the directions they amount to."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from statistics import fmean

from markupsafe import Markup

from malora_cli.reports.charts import Line, line_chart, task_ink
from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import RunView
from malora_cli.results import ExpertGeometry, ProjectionGeometry, Sides

_TEMPLATE = """
{% import "macros.html.j2" as m %}
<p class="lead">Two experts of a linear share
{% if down is not none %}<b>{{ down|percent }}</b> of their down-projections' directions and
<b>{{ up|percent }}</b> of their up-projections'{% else %}nothing: there is one{% endif %}. All together amount to
{{ down_rank|percent }} of the directions that their down-projections could have, and to {{ up_rank|percent }} of their
up-projections'.</p>
<p class="legend"><span><i class="stroke max"></i>down-projections</span>
<span><i class="stroke min"></i>up-projections</span><span><i class="stroke dotted"></i>all alike</span></p>
<div class="charts">
{% for group, svg in charts %}
<figure><figcaption><b>{{ group }}</b><span class="num">singular values</span></figcaption>{{ svg }}</figure>
{% endfor %}
</div>
{{ m.projections(rows) }}
<p class="note">Similarity is the mean canonical correlation of two experts, 1 where they read or write the same
directions and 0 where they share none. Singular values are those of all experts of a linear together, largest on the
left, over their mean; the rank beside them is the effective one. Where down-projections share few directions and
up-projections have each their own, a shared subspace costs the experts little: that is what MALoRA builds on
(arXiv 2410.22782, Fig. 2 and 3).</p>
"""


def both_sides(geometry: ExpertGeometry) -> dict[str, list[ProjectionGeometry]]:
    """All down- and all up-projections."""
    linears = [linear for group in geometry.groups.values() for linear in group.values()]
    return {"down": [linear["down"] for linear in linears], "up": [linear["up"] for linear in linears]}


def mean_similarity(sides: Iterable[ProjectionGeometry]) -> float | None:
    """How alike two experts are; None where there is one."""
    known = [side.similarity for side in sides if side.similarity is not None]
    return fmean(known) if known else None


def filled(sides: Iterable[ProjectionGeometry]) -> float:
    """The directions that experts amount to, as a share of those that they could; mean over linears."""
    return fmean(side.effective_rank / max(side.rank, 1) for side in sides)


def by_linear(geometry: ExpertGeometry) -> list[tuple[str, str, tuple[ProjectionGeometry, ProjectionGeometry]]]:
    """Name of the linears, layer group, and both sides, those of one name next to each other."""
    targets = dict.fromkeys(target for linears in geometry.groups.values() for target in linears)
    return [
        (target, group, (linears[target]["down"], linears[target]["up"]))
        for target in targets
        for group, linears in geometry.groups.items()
        if target in linears
    ]


def mean_spectrum(sides: Iterable[ProjectionGeometry]) -> list[float]:
    """Singular values over their mean, largest first; mean over linears."""
    return [fmean(values) for values in zip(*(side.spectrum for side in sides), strict=True)]


def _chart(index: int, group: str, linears: Collection[Sides]) -> tuple[str, Markup]:
    """Mean spectra of one layer group."""
    lines = [
        _line([sides["down"] for sides in linears], task_ink(1)),
        _line([sides["up"] for sides in linears], task_ink(0)),
    ]
    label = f"Singular values of the experts in {group}"
    return group, line_chart(lines, key=f"spectrum-{index}", label=label, x_max=100, reference=1.0)


def _line(sides: Iterable[ProjectionGeometry], ink: str) -> Line:
    heights = mean_spectrum(sides)
    return Line([100 * i / (len(heights) - 1) for i in range(len(heights))], heights, ink=ink)


def _render(run: RunView) -> str | None:
    if run.experts is None or not run.experts.groups:
        return None
    groups = run.experts.groups
    sides = both_sides(run.experts)
    share = {name: filled(found) for name, found in sides.items()}
    return render(
        _TEMPLATE,
        down=mean_similarity(sides["down"]),
        up=mean_similarity(sides["up"]) or 0.0,
        down_rank=share["down"],
        up_rank=share["up"],
        charts=[_chart(index, group, linears.values()) for index, (group, linears) in enumerate(groups.items())],
        rows=by_linear(run.experts),
    )


SECTION = Section(title="What experts share", order=55, render=_render)
