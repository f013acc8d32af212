"""What was trained on what, and whether it helped: one sentence with the numbers, and the facts around it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import SHOWN, RunView
from malora_cli.results import EvalEvent, EvalResult
from malora_cli.results.evaluation import Difference

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% set subject = "After " ~ view.step|count ~ " steps on " ~ view.tasks|length|plural("task") ~ ", "
   ~ view.manifest.method ~ " took " ~ view.manifest.base_model %}
<p class="verdict">
{% if result %}
  {% set mean = overall.difference %}
  {{ subject }} from <b>{{ overall.against.score|percent }}</b>
  {{- " (" ~ result.shots|plural("shot") ~ ")" if result.shots }} to
  {{ m.change(0 if mean and not mean.told_apart else overall.gain, overall.model.score|percent, strong=true) }}
  ({{ overall.gain|points }} points
  {%- if mean and mean.low is not none %}, 95% interval {{ mean.low|points }} to {{ mean.high|points }}{% endif -%}
  ) in the mean score over {{ domains|length|plural("domain") }}{{ ", which cannot be told apart from no change"
  if mean and not mean.told_apart }}.
  {% if verdicts is none %}
  {{ tasks_up }} of {{ result.tasks|length|plural("task") }} and
  {{ domains_up }} of {{ domains|length|plural("domain") }} gained.
  {% else %}
  {{ verdicts.gained }} of {{ result.tasks|length|plural("task") }} gained, {{ verdicts.lost }} lost
  {{- ", " ~ verdicts.alike ~ " cannot be told apart" if verdicts.alike }}.
  {% endif %}
  {% if given_away %}
  Test rows of {{ given_away|plural("task") }} are also training rows: scores there are too good.
  {% endif %}
{% elif first is not none %}
  {{ subject }} from <b>{{ first|nats }}</b> to {{ m.change(first - last, last|nats, strong=true) }} nats a token in
  {{ view.watched }}, the mean over {{ shared|plural("task") }}. There are no scores yet.
{% else %}
  {{ view.manifest.method }} on {{ view.manifest.base_model }}, {{ view.tasks|length|plural("task") }}:
  nothing is measured yet.
{% endif %}
</p>
{% if view.running %}
{{ m.missing("This run has not come to its end: step " ~ view.step ~ (" of " ~ planned if planned else "")
   ~ ". If nobody is training it any more, continue it with",
   "malora train " ~ (view.folder ~ "/recipe.yaml")|shell ~ " --resume") }}
{% endif %}
{% if not result %}
{{ m.missing("There is no evaluation of this run. " ~ ("Once it has finished, measure" if view.running else "Measure")
   ~ " every task, base model beside adapter, with",
   "malora eval " ~ view.folder|shell) }}
{% elif result.tasks|length < view.tasks|length %}
{{ m.missing("Only " ~ result.tasks|length ~ " of " ~ view.tasks|length ~ " tasks were evaluated. All of them:",
   "malora eval " ~ view.folder|shell) }}
{% endif %}
{% if result %}
<div class="domains">
{% for name, it in domains.items() if name in domains_shown %}{% set b, a = it.against, it.model %}
  <div><span>{{ name }}</span>{{ m.dumbbell(b, a, "var(--accent)") }}
  <span class="num">{{ b.score|percent }} → <b>{{ a.score|percent }}</b></span>
  <span class="num">{{ m.gain(it) }}</span></div>
{% endfor %}
</div>
<p class="legend"><span><i class="dot hollow"></i>base model</span><span><i class="dot"></i>adapter</span>
{% if overall.model.low is not none %}<span><i class="whisker"></i>95% interval</span>{% endif %}
<span>mean score of each domain, 0 to 100%
{{- ", for " ~ domains_shown|length ~ " of " ~ domains|length ~ " domains" if domains_shown|length < domains|length -}}
</span></p>
{% endif %}
<dl class="facts">
  <div><dt>Method</dt><dd>{{ view.manifest.method }}</dd></div>
  <div><dt>Base model</dt><dd>{{ view.manifest.base_model }}</dd>
    <dd class="more">{{ view.manifest.base_parameters|short }} parameters</dd></div>
  <div><dt>Trainable</dt><dd>{{ view.manifest.trainable_parameters|short }}</dd>
    {% set everything = view.manifest.trainable_parameters + view.manifest.base_parameters %}
    {% if everything %}<dd class="more">
    {{- "%.2f"|format(100 * view.manifest.trainable_parameters / everything) }}% of all</dd>
    {% endif %}</div>
  <div><dt>Trained for</dt><dd>{{ view.step|count }} steps</dd>
    {% if seconds %}<dd class="more">{{ seconds|duration }}</dd>{% endif %}</div>
  <div><dt>Mixture</dt><dd>{{ view.tasks|length|plural("task") }}</dd>
    <dd class="more">in {{ domain_count|plural("domain") }}</dd></div>
{% if result and overall.model.loss is not none %}
  <div><dt>Held-out loss</dt><dd>{{ overall.against.loss|nats }} → {{ overall.model.loss|nats }}</dd>
    <dd class="more">nats a token, mean over domains</dd></div>
{% endif %}
</dl>
"""


def _gains(result: EvalResult | None) -> dict[str, object]:
    if result is None:
        return {}
    domains = result.domains()
    members = result.tasks.values()
    return {
        "domains": domains,
        "domains_shown": list(domains)[:SHOWN],
        "overall": result.overall(),
        "verdicts": _verdicts([task.difference for task in members]),
        "tasks_up": sum((task.gain or 0) > 0 for task in members),
        "domains_up": sum((domain.gain or 0) > 0 for domain in domains.values()),
    }


def _verdicts(differences: Sequence[Difference | None]) -> dict[str, int] | None:
    """How many tasks gained, lost, or cannot be told apart; None where that was not measured, as by older versions."""
    known = [difference for difference in differences if difference is not None]
    if len(known) < len(differences):
        return None
    lost = sum(difference.is_worse for difference in known)
    gained = sum(difference.told_apart for difference in known) - lost
    return {"gained": gained, "lost": lost, "alike": len(known) - gained - lost}


def _given_away(run: RunView) -> int:
    """How many of the tasks that were evaluated have test rows that were also trained on."""
    evaluated = run.evaluation.tasks if run.evaluation is not None else {}
    return sum(bool(data.also_trained) for name, data in run.manifest.test_data.items() if name in evaluated)


def _measured(evals: Sequence[EvalEvent]) -> dict[str, object]:
    """Mean loss at the first and the last evaluation, over the tasks that both have."""
    if len(evals) < 2:
        return {"first": None, "last": None, "shared": 0}
    start, end = evals[0].tasks, evals[-1].tasks
    pairs = [(start[name].loss, end[name].loss) for name in start if name in end]
    both = [(before, after) for before, after in pairs if before is not None and after is not None]
    if not both:
        return {"first": None, "last": None, "shared": 0}
    return {"first": fmean(b for b, _ in both), "last": fmean(a for _, a in both), "shared": len(both)}


def _render(run: RunView) -> str:
    train = run.recipe.get("train")
    return render(
        _TEMPLATE,
        view=run,
        seconds=run.manifest.train_seconds or run.log.seconds,
        result=run.evaluation,
        planned=train.get("steps") if isinstance(train, dict) else None,
        domain_count=len({task.domain for task in run.tasks.values()}),
        given_away=_given_away(run),
        **_gains(run.evaluation),
        **_measured(run.log.evals),
    )


SECTION = Section(title="Result", order=10, render=_render)
