"""Rows that the baseline and the best other method answer differently: asked, right, and what each said."""

from __future__ import annotations

from contextlib import suppress

from malora_cli.errors import RunError
from malora_cli.reports.comparison.runs import evaluations_of
from malora_cli.reports.comparison.view import ComparisonView, Method
from malora_cli.reports.differing import Differing
from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import SHOWN

_NOTHING = """<p class="missing">{{ why }}</p>"""
_TEMPLATE = """
{% import "macros.html.j2" as m %}
<p class="lead">Of {{ found.total|plural("row") }} {{ m.chip(method) }} does <b>{{ found.worse|count }} worse</b> than
{{ m.chip(baseline) }} and <b>{{ found.better|count }} better</b>, by their scores with seed {{ seed }}.
{{ "Here they are" if all_shown else "Here are " ~ found.rows|length ~ " of them, drawn at random" }}, those that it
does worse first.</p>
{% call(task) m.answers(found.rows, baseline.name, method.name) %}<span class="chip">{{ m.broken(task) }}</span>
{%- endcall %}

<p class="note">The number behind a name is the score of this answer alone, from 0 to 1. One seed’s rows are examples,
and no verdict. Long texts are without their middle; all answers are whole in the files
<code>.predictions.jsonl</code> under <code>eval/</code> of the runs.</p>
"""


def _best_other(view: ComparisonView) -> Method | None:
    """The best method beside the baseline, of those that lack no seed if there are any."""
    others = [(method, it) for method, it, _ in view.measured if method.name != view.comparison.baseline]
    whole = [method for method, it in others if not view.lacks(it)]
    return next(iter([*whole, *(method for method, _ in others)]), None)


def _differing(view: ComparisonView, baseline: Method, method: Method) -> tuple[int, Differing] | None:
    """The rows of the first seed of which both have their answers."""
    if view.runs is None or baseline.result is None or method.result is None:
        return None
    ours, theirs = (evaluations_of(it.result.runs, view.runs) for it in (method, baseline) if it.result)
    for seed in view.comparison.seeds:
        if seed in ours and seed in theirs:
            with suppress(RunError):  # damaged answers are no reason to have no page
                found = Differing.between(theirs[seed], ours[seed], view.tasks[:SHOWN])
                if found is not None and found.total:
                    return seed, found
    return None


def _render(view: ComparisonView) -> str | None:
    method, baseline = _best_other(view), view.methods.get(view.comparison.baseline)
    if view.runs is None or method is None or baseline is None or baseline.result is None:
        return None
    chosen = _differing(view, baseline, method)
    if chosen is None:
        return render(_NOTHING, why=f"The answers of {baseline.name} and {method.name} are not here to be compared.")
    seed, found = chosen
    if not found.rows:
        why = f"{method.name} and {baseline.name} score alike on every one of {found.total} rows with seed {seed}."
        return render(_NOTHING, why=why)
    return render(
        _TEMPLATE,
        method=method,
        baseline=baseline,
        seed=seed,
        found=found,
        all_shown=len(found.rows) == found.worse + found.better,
    )


SECTION = Section(title="Answers that differ", order=65, render=_render)
