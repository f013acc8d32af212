"""Table 1: every method, what it costs, what it reached, and how that differs from the baseline."""

from __future__ import annotations

from malora_cli.reports.comparison.view import ComparisonView, Method, Scale
from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.results.comparison import Effect, MethodResult, Verdict

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% import "comparison/macros.html.j2" as c %}
<p class="lead"><b>Table 1.</b> Methods by their {{ view.measure }} on test rows, best first. ± is half of a 95%
interval.</p>
<div class="scroll"><table class="compared">
<thead><tr><th>Method</th><th class="num">parameters</th><th class="num">learning rate</th>
<th class="num">{{ view.measure }}, {{ view.unit }}</th>
{% if scale is not none %}<th class="wide-plot">difference {{ c.ends(view, scale) }}</th>{% endif %}
<th class="num">difference, {{ view.gap_unit }}</th><th>verdict</th>
{% if not view.is_score %}<th class="num">mean score</th>{% endif %}
<th class="num" title="tasks on which it is better, neither and worse">tasks +&nbsp;/&nbsp;=&nbsp;/&nbsp;−</th>
<th class="num" title="mean of the middle half of all tasks and seeds">interquartile mean</th>
<th class="num">mean rank</th><th class="num">seconds a step</th>
{% if of_gpu %}<th class="num" title="most memory of the GPU while training">peak GiB</th>{% endif %}</tr></thead>
<tbody>
{% for method, it in view.known %}
<tr><th scope="row">{{ m.chip(method) }}{% if it.added %}<span class="flag">added after the plan</span>{% endif %}
{%- if view.lacks(it) %}<span class="flag">
{{- it.runs|length }} of {{ view.comparison.seeds|length|plural("seed") }}</span>{% endif %}</th>
<td class="num">{{ it.parameters|count }}</td>
<td class="num">{{ it.tuned.learning_rate|rate }}
{%- if it.tuned.bracketed is none %} <span class="about">not tuned</span>
{%- elif not it.tuned.bracketed %} <span class="flag">not bracketed</span>{% endif %}</td>
<td class="num"><span{% if method.name in bold %} class="strong"{% endif %}>{{ view.written(it.value) }}</span>
{%- if method.name in tied %}<sup title="ties with the best at these digits">t</sup>{% endif %}
{%- if view.level(it) %} <span class="about">{{ view.level(it) }}</span>{% endif %}</td>
{% if scale is not none %}<td class="wide-plot">
{%- if it.effect is not none %}{{ c.plot(view, method, it.effect, scale) }}{% endif %}</td>{% endif %}
{% if it.effect is not none %}
<td class="num">{{ c.gap(view, it.effect) }}</td><td>{{ c.verdict(view, it.effect) }}</td>
{% else %}
<td class="num">–</td><td class="quiet">
{{- "baseline" if method.name == view.comparison.baseline else "not compared" }}</td>
{% endif %}
{% if not view.is_score %}<td class="num">{% set score = it.mean("scores") %}
{{- "–" if score is none else score|percent }}</td>{% endif %}
<td class="num">{{ tally(it) }}</td><td class="num">{{ view.written(it.interquartile) }}
{%- if it.interquartile_half is not none %} <span class="about">{{ view.around(it.interquartile_half) }}</span>
{%- endif %}</td>
<td class="num">{{ "–" if it.rank is none else "%.2f"|format(it.rank) }}</td>
<td class="num">{% set pace = it.seconds_per_step %}{{ "–" if pace is none else "%.3g"|format(pace) }}</td>
{% if of_gpu %}<td class="num">{% set peak = it.peak_bytes %}
{{- "–" if peak is none else "%.2f"|format(peak / 2**30) }}</td>{% endif %}</tr>
{% endfor %}
</tbody></table></div>
<p class="note">
{%- if bold %}Bold is the best, which is better than the baseline.
{% else %}No method is bold: the best has no verdict “better” against the baseline.
{% endif %}
{% if tied %}<sup>t</sup> ties with the best at these digits.
{% endif %}
Verdicts are against {{ m.broken(view.comparison.baseline) }} alone; other pairs of methods were not tested.
{% if lacking %}A method that lacks seeds is not compared: its {{ view.measure }} is a mean over fewer of them.
{% endif %}
{% if view.one_seed %}One seed allows no verdict.
{% endif %}
{% if edges %}“Not bracketed”: the best learning rate lies at the edge of the grid, and a better one may lie beyond.
{% endif %}
{% if view.comparison.margin %}Shaded: the margin, ±{{ view.around(view.comparison.margin)[1:] }}.
{% endif %}
{% if beyond %}‹ and › lie beyond the ends of the line.
{% endif %}
+ / = / − are tasks on which it is better, neither and worse. The interquartile mean is that of the middle half of the
{{ view.measure }}{{ "s" if view.is_score else "es" }} of all tasks and seeds, ± over seeds; no verdict goes by it.</p>
"""


def leaders(view: ComparisonView) -> list[tuple[Method, MethodResult]]:
    """The best method of those that have all seeds, and what ties with it at the digits that are shown."""
    measured = [(method, it, value) for method, it, value in view.measured if not view.lacks(it)]
    if not measured:
        return []
    best = (max if view.is_score else min)(value for _, _, value in measured)
    return [(method, it) for method, it, value in measured if view.written(value) == view.written(best)]


def tally(it: MethodResult) -> str:
    """Tasks on which a method is better, neither and worse; a dash where no task has a verdict."""
    if all(effect.verdict is Verdict.NONE for effect in it.tasks.values()):
        return "–"
    return " / ".join(map(str, it.tally()))


def _render(view: ComparisonView) -> str | None:
    if not view.known:
        return None
    effects: list[Effect] = [it.effect for _, it in view.known if it.effect is not None]
    scale = Scale.over(effects, view.comparison.margin) if effects else None
    best = leaders(view)
    wins = {method.name for method, it in best if it.effect is not None and it.effect.verdict is Verdict.BETTER}
    return render(
        _TEMPLATE,
        view=view,
        scale=scale,
        beyond=scale is not None and any(scale.span(effect).beyond for effect in effects),
        bold=wins,
        tied={method.name for method, _ in best} if len(best) > 1 else set(),
        tally=tally,
        of_gpu=any(it.peak_bytes is not None for _, it in view.known),
        lacking=any(view.lacks(it) for _, it in view.known),
        edges=any(it.tuned.bracketed is False for _, it in view.known),
    )


SECTION = Section(title="Methods", order=20, render=_render)
