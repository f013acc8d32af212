"""What is needed to get this run again: commands, versions, seeds, and hashes that say whether the data is the same."""

from __future__ import annotations

from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import RunView

_TEMPLATE = """
<pre class="commands">malora train {{ recipe|shell }} {{ renamed|shell }}
malora eval {{ again|shell }}
malora report {{ again|shell }}</pre>
<div class="groups">
<div><h3>Versions</h3><dl class="plain">{% for name, version in view.manifest.versions.items() %}
<div><dt>{{ name }}</dt><dd>{{ version }}</dd></div>{% endfor %}</dl></div>
<div><h3>Seeds</h3><dl class="plain">{% for name, seed in view.manifest.seeds.items() %}
<div><dt>{{ name }}</dt><dd>{{ seed }}</dd></div>{% endfor %}</dl>
<h3>Run</h3><dl class="plain"><div><dt>created</dt><dd>{{ view.manifest.created }}</dd></div>
<div><dt>base model</dt><dd>{{ view.manifest.base_model }}</dd></div></dl></div>
</div>
<details><summary>Hashes<span class="quiet">SHA-256 of the base model and of the encoded rows, in order</span></summary>
<div class="scroll"><table class="hashes">
<thead><tr><th>What</th><th class="num">rows</th><th>source</th><th>SHA-256</th></tr></thead><tbody>
<tr><td>base model</td><td></td><td>{{ view.manifest.base_model }}</td>
<td><code>{% if view.manifest.base_model_commit %}commit {{ view.manifest.base_model_commit }}
{%- else %}{{ view.manifest.base_model_sha256 or "not known" }}{% endif %}</code></td></tr>
{% for split, data in splits %}{% for name, rows in data.items() if name in shown %}
<tr><td>{{ name }}, {{ split }}</td><td class="num">{{ rows.rows|count }}</td><td>{{ rows.source }}</td>
<td><code>{{ rows.sha256 }}</code></td></tr>
{% endfor %}{% endfor %}
</tbody></table></div>
{%- if view.crowded %}<p class="note">Those of the tasks that are shown; all are in <code>manifest.json</code>.</p>
{% endif %}</details>
"""


def _render(run: RunView) -> str:
    splits = [("train", run.manifest.train_data), ("test", run.manifest.test_data)]
    names = [*run.manifest.train_data, *run.manifest.test_data]
    return render(
        _TEMPLATE,
        view=run,
        recipe=f"{run.folder}/recipe.yaml",
        renamed=f"output.name={run.name}-again",
        again=f"{run.folder}-again",
        splits=splits,
        shown={task.name for task in run.shown(run.tasks.values())} if run.crowded else set(names),
    )


SECTION = Section(title="Reproduce", order=90, render=_render)
