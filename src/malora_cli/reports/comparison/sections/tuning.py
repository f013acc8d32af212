"""Which learning rates were tried for every method, and what came of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from malora_cli.reports.charts import GRID, Axis, Line, Ring, task_ink, xy_chart
from malora_cli.reports.comparison.view import ComparisonView, Method
from malora_cli.reports.html import rate, render
from malora_cli.reports.section import Section
from malora_cli.results.comparison import Trial

#: A loss this many times that of the worst of the methods' best is no longer in the charts.
_CEILING = 1.25
#: Distances of labels on the axis of learning rates, at most.
_TICKS = 5

_TEMPLATE = """
{% import "macros.html.j2" as m %}
<p class="lead">Validation loss over learning rate, one seed{% if view.comparison.tuning_seed is not none %}
 ({{ view.comparison.tuning_seed }}){% endif %}, which is not reported. Every chart has the same scales.</p>
<p class="legend"><span>ring: the learning rate that was taken</span>
{% if failed %}<span>× at the top: the run diverged or failed</span>{% endif %}<span>grey: the other methods</span></p>
<div class="charts roomy">
{% for method, svg, said, flagged in charts %}
<figure><figcaption>{{ m.chip(method) }}<span class="num">{{ said }}
{%- if flagged %} <span class="flag">not bracketed</span>{% endif %}</span></figcaption>{{ svg }}</figure>
{% endfor %}
</div>
{% if cut %}<p class="note">Losses that leave a chart at the top are in the table.</p>{% endif %}
<details class="data"><summary>Data<span class="quiet">{{ rows|length|plural("trial") }}</span></summary>
<div class="scroll"><table class="compared">
<thead><tr><th>Method</th><th class="num">learning rate</th><th class="num">validation loss</th><th>note</th>
<th>run</th></tr></thead><tbody>
{% for method, trial, taken in rows %}
<tr><th scope="row">{{ m.chip(method) }}</th><td class="num">{{ trial.learning_rate|rate }}</td>
<td class="num">
{%- if trial.loss is not none %}{{ "%.4f"|format(trial.loss) }}
{%- else %}{{ "diverged" if trial.diverged else "failed" }}{% endif %}</td>
<td class="long">{{ "taken" if taken }}{{ view.told(trial.why or "") }}</td>
<td class="long">{{ view.run(trial.run) }}</td></tr>
{% endfor %}
</tbody></table></div></details>
"""

Trials = Mapping[Method, Sequence[Trial]]


def curves(view: ComparisonView) -> dict[Method, list[Trial]]:
    """The trials of every method that has any, by learning rate."""
    trials = sorted(view.comparison.trials, key=lambda trial: trial.learning_rate)
    found = {method: [trial for trial in trials if trial.method == name] for name, method in view.methods.items()}
    return {method: tried for method, tried in found.items() if tried}


def taken(method: Method, tried: Sequence[Trial]) -> Trial | None:
    """The trial whose learning rate the method was given; None where it was not tuned."""
    known = [trial for trial in tried if trial.loss is not None]
    if method.result is None or method.result.tuned.bracketed is None or not known:
        return None
    rate_taken = method.result.tuned.learning_rate
    return min(known, key=lambda trial: (abs(trial.learning_rate - rate_taken), trial.loss))


def ceiling(trials: Trials) -> float | None:
    """Where the charts end: losses far above what any method was content with would flatten all others."""
    known = {method: [trial.loss for trial in tried if trial.loss is not None] for method, tried in trials.items()}
    lows = [min(losses) for losses in known.values() if losses]
    if not lows:
        return None
    return min(max(max(losses) for losses in known.values() if losses), _CEILING * max(lows))


def ticks(rates: Sequence[float]) -> list[tuple[float, str]]:
    """Labels of the learning rates that were tried, not more than have room."""
    kept = list(rates[:1])
    apart = (rates[-1] / rates[0]) ** (1 / _TICKS)
    for value in rates[1:]:
        if value >= kept[-1] * apart:
            kept.append(value)
    return [(value, rate(float(f"{value:.1e}"))) for value in kept]


def _line(tried: Sequence[Trial], **style: Any) -> Line:
    known = [(trial.learning_rate, trial.loss) for trial in tried if trial.loss is not None]
    return Line([x for x, _ in known], [y for _, y in known], clipped=True, **style)


def _chart(trials: Trials, method: Method, x: Axis, y: Axis) -> tuple[Method, str, str, bool]:
    tried, best = trials[method], taken(method, trials[method])
    ink = task_ink(method.slot)
    flagged = best is not None and method.result is not None and not method.result.tuned.bracketed
    rings = (
        [] if best is None or best.loss is None else [Ring(best.learning_rate, best.loss, "edge" if flagged else "")]
    )
    svg = xy_chart(
        [
            *(_line(others, ink=GRID, width=1.2) for other, others in trials.items() if other != method),
            _line(tried, ink=ink, width=2.0, dots=True, marker=method.marker, size=9),
        ],
        key=f"rate-{method.index}",
        label=f"Validation loss of {method.name} over learning rate",
        x=x,
        y=y,
        rings=rings,
        crosses=[(trial.learning_rate, ink) for trial in tried if trial.loss is None],
    )
    return method, svg, "" if best is None else f"{rate(best.learning_rate)} → {best.loss:.4f}", flagged


def _render(view: ComparisonView) -> str | None:
    trials = curves(view)
    if not trials:
        return None
    every = [trial for tried in trials.values() for trial in tried]
    rates, losses = sorted({t.learning_rate for t in every}), [t.loss for t in every if t.loss is not None]
    top = ceiling(trials)
    shown = [loss for loss in losses if top is not None and loss <= top] or [0.0, 1.0]
    across = Axis.over(rates, log=True)
    x = Axis(across.low, across.high, log=True, ticks=ticks(rates))
    y = Axis.over([*shown, *([] if top is None else [top])], pad=0.16)
    return render(
        _TEMPLATE,
        view=view,
        charts=[_chart(trials, method, x, y) for method in trials],
        rows=[(method, t, t is taken(method, tried)) for method, tried in trials.items() for t in tried],
        failed=len(losses) < len(every),
        cut=any(loss > y.high for loss in losses),
    )


SECTION = Section(title="Learning rates", order=30, render=_render)
