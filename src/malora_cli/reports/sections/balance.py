"""Balance loss and the experts' shares while training went on: does one expert take over?"""

from __future__ import annotations

from collections.abc import Sequence

from malora_cli.reports.charts import INK, Line, line_chart, task_ink
from malora_cli.reports.html import percent, render
from malora_cli.reports.section import Section
from malora_cli.reports.view import RunView

_TEMPLATE = """
<p class="legend"><span><i class="stroke dotted"></i>even load</span>
{% if groups %}<span><i class="stroke max"></i>busiest expert of each router</span>
<span><i class="stroke min"></i>least used</span><span><i class="stroke thin"></i>the others</span>{% endif %}</p>
<div class="charts">
{% if balance %}
<figure><figcaption><b>Balance loss</b><span class="num">{{ last }}</span></figcaption>{{ balance }}</figure>
{% endif %}
{% for group, svg, reach in groups %}
<figure><figcaption><b>{{ group }}</b><span class="num">{{ reach }}</span></figcaption>{{ svg }}</figure>
{% endfor %}
</div>
<p class="note">
{% if balance %}
The balance loss is the mean over routers and 1 when all experts are used alike.
{% endif %}
{% if groups %}
The share is that of the training tokens' assignments that each expert gets; experts are ranked within each router, at
every log step, and the mean over routers is taken rank by rank, so a collapse shows whichever experts it is onto.
{% endif %}
{% if points.each > 1 %}
There are {{ points.count|count }} log steps: a point of a curve is the mean over {{ points.each|count }} of them, and
the figures above the charts are those of the last.
{% endif %}
</p>
"""


def _balance(run: RunView) -> dict[str, object]:
    points = [(point.step, loss) for point in run.log.points.items if (loss := point.balance_loss) is not None]
    if not points:
        return {"balance": None, "last": ""}
    line = Line([step for step, _ in points], [loss for _, loss in points], width=1.6)
    chart = line_chart(
        [line], key="balance", label="Balance loss over steps", x_max=run.step, reference=1.0, from_zero=False
    )
    return {"balance": chart, "last": f"{run.log.balance_loss:.3f}"}


def _shares(run: RunView, index: int, group: str, last: Sequence[float]) -> tuple[str, str, str]:
    """One layer group: its name, its chart, and the least and the most used expert at the end."""
    points = [(point.step, shares) for point in run.log.points.items if (shares := point.share(group)) is not None]
    steps = [step for step, _ in points]
    ranked = sorted(range(len(last)), key=lambda expert: last[expert])
    # The two that matter are drawn last, on top of the crowd.
    inks = {ranked[0]: task_ink(0), ranked[-1]: task_ink(1)}
    lines = [
        Line(
            steps,
            [shares[expert] for _, shares in points],
            ink=inks.get(expert, INK),
            width=1.9 if expert in inks else 1.0,
            opacity=1.0 if expert in inks else 0.28,
        )
        for expert in (*ranked[1:-1], ranked[0], *ranked[1:][-1:])
    ]
    chart = line_chart(
        lines,
        key=f"share-{index}",
        label=f"Share of every expert in {group} over steps",
        x_max=run.step,
        reference=1 / len(last),
        as_percent=True,
    )
    return group, chart, f"{percent(last[ranked[0]])} – {percent(last[ranked[-1]])}"


def _render(run: RunView) -> str | None:
    groups = [_shares(run, index, *item) for index, item in enumerate(run.log.expert_share.items())]
    balance = _balance(run)
    if not groups and not balance["balance"]:
        return None
    return render(_TEMPLATE, points=run.log.points, groups=groups, **balance)


SECTION = Section(title="Balance over training", order=60, render=_render)
