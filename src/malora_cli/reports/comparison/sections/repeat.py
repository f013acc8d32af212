"""What is needed to read the verdicts and to get the comparison again, and every figure as a file."""

from __future__ import annotations

import shlex

from malora_cli.reports.comparison.view import ComparisonView
from malora_cli.reports.html import render
from malora_cli.reports.section import Section

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% import "comparison/macros.html.j2" as c %}
<p class="lead">Every difference has two 95% intervals: one over test rows, which is about these runs, and one over
seeds, which is about new runs. The wider one is shown and counts, and so does the larger of the two p-values. p-values
are corrected by Holm’s method, over all methods and over all tasks of all methods.
{% if it.margin %}A difference is called equal where two one-sided tests place it within ±{{ margin }}
{{ view.gap_unit }}.{% else %}No margin was set, so no difference is called equal.{% endif %}</p>
<div class="groups">
<div><h3>Comparison</h3><dl class="plain">
<div><dt>endpoint</dt><dd>{{ view.measure }} on test rows, mean over tasks</dd></div>
<div><dt>baseline</dt><dd>{{ m.broken(it.baseline) }}</dd></div>
<div><dt>margin</dt><dd>{% if it.margin %}±{{ margin }} {{ view.gap_unit }}{% else %}none{% endif %}</dd></div>
<div><dt>steps</dt><dd>{{ it.steps|count }}</dd></div>
<div><dt>seeds</dt><dd>{{ it.seeds|join(", ") }}</dd></div>
<div><dt>seed of the trials</dt><dd>{{ "not tuned" if it.tuning_seed is none else it.tuning_seed }}</dd></div>
<div><dt>training of the reported runs</dt><dd>{{ trained|duration }}</dd></div>
{% if it.trials %}<div><dt>training of the trials</dt><dd>{{ tried|duration }}</dd></div>{% endif %}
<div><dt>created</dt><dd>{{ it.created }}</dd></div>
<div><dt>SHA-256 of the plan</dt><dd><code>{{ it.plan_sha256 or "no plan was written" }}</code></dd></div>
</dl></div>
<div><h3>Test rows</h3><dl class="plain">
{% for task in view.tasks %}<div><dt>{{ m.broken(task) }}{% if task in it.domains %} <span class="quiet">
{{- it.domains[task] }}</span>{% endif %}</dt><dd>{{ it.rows[task]|count }}</dd></div>
{% endfor %}</dl></div>
</div>
{% if command %}<h3>Command</h3>
<p class="note">Run it where the recipe and its data are. Runs that are finished there are kept.</p>
<pre class="commands">{{ command }}</pre>{% endif %}
{{ c.download("comparison.csv", "all figures", csv) }}
"""


def _render(view: ComparisonView) -> str:
    it = view.comparison
    # The same bytes as comparison.csv, whose halves of characters are written so too.
    csv = it.csv().encode("utf-8", errors="backslashreplace")
    margin = view.around(it.margin)[1:]
    trained = sum(run.train_seconds for method in it.methods for run in method.runs)
    tried = sum(trial.seconds for trial in it.trials)
    command = shlex.join(it.command)
    return render(_TEMPLATE, view=view, it=it, margin=margin, csv=csv, trained=trained, tried=tried, command=command)


SECTION = Section(title="Repeat", order=80, render=_render)
