"""Training and validation loss of every task, one small chart each: eight crossing curves in one cannot be read."""

from __future__ import annotations

from collections.abc import Sequence

from malora_cli.reports.charts import Line, line_chart, task_ink
from malora_cli.reports.html import nats, render
from malora_cli.reports.section import Section
from malora_cli.reports.view import RunView, Task
from malora_cli.results import LogSteps

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% if not charts %}
{{ m.missing("No loss was logged in this run yet. Training writes it:",
   "malora train " ~ (view.folder ~ "/recipe.yaml")|shell ~ " --resume") }}
{% else %}
<p class="legend"><span><i class="stroke thin"></i>training loss</span>
<span><i class="stroke dotted-end"></i>{{ view.watched }}</span><span><i class="stroke dotted"></i>base model</span>
<span>nats a supervised token, over steps; every chart has its own scale</span></p>
<div class="charts">
{% for task, svg, validation in charts %}
<figure><figcaption>{{ m.chip(task) }}<span class="num">{{ validation }}</span></figcaption>{{ svg }}</figure>
{% endfor %}
</div>
{{ m.some(view) -}}
{% if view.log.points.each > 1 %}
<p class="note">There are {{ view.log.points.count|count }} log steps: a point of a training curve is the loss of all
tokens of {{ view.log.points.each|count }} of them. All of them are in <code>metrics.jsonl</code>.</p>
{% endif %}
{% if view.log.evals|length < view.log.evaluated %}
<p class="note">Of {{ view.log.evaluated|count }} evaluations {{ view.log.evals|length }} are drawn, the first and the
last among them, and with them the one at which each task was best.</p>
{% endif %}
{% if not view.log.evals %}
{{ m.missing("Validation losses were not measured: see mix.validation and train.eval_every of the recipe.") }}
{% endif %}
{% endif %}
"""


def training_curve(points: Sequence[LogSteps], task: str) -> tuple[list[int], list[float]]:
    """Steps and training loss of one task, where any of its tokens was seen."""
    known = [(point.step, loss) for point in points if (loss := point.loss(task)) is not None]
    return [step for step, _ in known], [loss for _, loss in known]


def validation_curve(run: RunView, task: str) -> tuple[list[int], list[float]]:
    """Steps and validation loss of one task, where it was measured; where it was best is always among them."""
    measured = {event.step: event.tasks[task].loss for event in run.log.evals if task in event.tasks}
    if (best := run.log.lows.best.get(task)) is not None:
        measured.setdefault(best[0], best[1].loss)
    known = [(step, loss) for step, loss in sorted(measured.items()) if loss is not None]
    return [step for step, _ in known], [loss for _, loss in known]


def _chart(run: RunView, task: Task) -> tuple[Task, str, str]:
    steps, training = training_curve(run.log.points.items, task.name)
    eval_steps, validation = validation_curve(run, task.name)
    ink = task_ink(task.slot)
    svg = line_chart(
        [
            Line(steps, training, ink=ink, width=1.2, opacity=0.55),
            Line(eval_steps, validation, ink=ink, width=2.2, dots=True),
        ],
        key=f"loss-{task.index}",
        label=f"Loss of {task.name} over training steps",
        x_max=run.step,
        reference=validation[0] if eval_steps[:1] == [0] else None,
    )
    return task, svg, f"{nats(validation[0])} → {nats(validation[-1])}" if len(validation) > 1 else ""


def _render(run: RunView) -> str:
    logged = {name for point in run.log.points.items for name in point.losses}
    logged |= {name for event in run.log.evals for name in event.tasks}
    return render(_TEMPLATE, view=run, charts=[_chart(run, task) for task in run.shown(run.ordered(logged))])


SECTION = Section(title="Loss curves", order=30, render=_render)
