"""Training and held-out loss of every task, one small chart each: eight crossing curves in one cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from malora_cli.reports.charts import Line, line_chart, task_ink
from malora_cli.reports.html import nats, render
from malora_cli.reports.section import Section
from malora_cli.reports.view import RunView, Task
from malora_cli.results import EvalEvent, TrainEvent

#: A chart is about this many pixels wide: more points than this only make the file bigger.
_POINTS = 150

_TEMPLATE = """
{% import "macros.html.j2" as m %}
{% if not charts %}
{{ m.missing("No loss was logged in this run yet. Training writes it:",
   "malora train " ~ (view.folder ~ "/recipe.yaml")|shell ~ " --resume") }}
{% else %}
<p class="legend"><span><i class="stroke thin"></i>training loss</span>
<span><i class="stroke dotted-end"></i>held-out loss</span><span><i class="stroke dotted"></i>base model</span>
<span>nats a supervised token, over steps; every chart has its own scale</span></p>
<div class="charts">
{% for task, svg, held_out in charts %}
<figure><figcaption>{{ m.chip(task) }}<span class="num">{{ held_out }}</span></figcaption>{{ svg }}</figure>
{% endfor %}
</div>
{% if not view.evals %}
{{ m.missing("Held-out losses were not measured during training: set train.eval_every in the recipe.") }}
{% endif %}
{% endif %}
"""


def training_curve(train: Sequence[TrainEvent], task: str) -> tuple[list[int], list[float]]:
    """Steps and training loss of one task, neighbouring log steps pooled where there are very many.

    Pooling adds up nats and tokens, so a point is the loss of all tokens it stands for, and not a mean of means.
    """
    steps, losses = [], []
    pooled = max(1, ceil(len(train) / _POINTS))
    for start in range(0, len(train), pooled):
        chunk = train[start : start + pooled]
        seen = [event.tasks[task] for event in chunk if task in event.tasks]
        tokens = sum(loss.tokens for loss in seen)
        if tokens:
            steps.append(chunk[-1].step)
            losses.append(sum(loss.nats for loss in seen) / tokens)
    return steps, losses


def held_out_curve(run: RunView, task: str) -> tuple[list[int], list[float]]:
    """Steps and held-out loss of one task, where it was measured."""
    measured = [(event.step, event.tasks[task].loss) for event in run.evals if task in event.tasks]
    known = [(step, loss) for step, loss in measured if loss is not None]
    return [step for step, _ in known], [loss for _, loss in known]


def _chart(run: RunView, task: Task) -> tuple[Task, str, str]:
    steps, training = training_curve(run.train, task.name)
    eval_steps, held_out = held_out_curve(run, task.name)
    ink = task_ink(task.slot)
    svg = line_chart(
        [
            Line(steps, training, ink=ink, width=1.2, opacity=0.55),
            Line(eval_steps, held_out, ink=ink, width=2.2, dots=True),
        ],
        key=f"loss-{task.index}",
        label=f"Loss of {task.name} over training steps",
        x_max=run.step,
        reference=held_out[0] if eval_steps[:1] == [0] else None,
    )
    return task, svg, f"{nats(held_out[0])} → {nats(held_out[-1])}" if len(held_out) > 1 else ""


def _render(run: RunView) -> str:
    events: list[TrainEvent | EvalEvent] = [*run.train, *run.evals]
    logged = {name for event in events for name in event.tasks}
    return render(_TEMPLATE, view=run, charts=[_chart(run, task) for task in run.ordered(logged)])


SECTION = Section(title="Loss curves", order=30, render=_render)
