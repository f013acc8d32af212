"""What is measured at an evaluation: the held-out loss of every task, and how far the tasks' gradients pull apart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext

from peft import PeftModel
from pydantic import ValidationError

from malora_cli.adapters.routing import routing_of, tallying
from malora_cli.data.batch import Packer, collate
from malora_cli.data.tasks import Task, in_lots
from malora_cli.modeling.heldout import held_out
from malora_cli.results import ConflictEvent, EvalEvent
from malora_cli.train.conflict import gradient_conflict
from malora_cli.train.task_losses import diverged


def evaluation(
    model: PeftModel, tasks: Sequence[Task], *, rows: int, batch_size: int, step: int, seconds: float
) -> EvalEvent:
    """Held-out loss of every task, and what its tokens asked of the experts; every process measures all of it.

    Args:
        model: The wrapped model.
        tasks: The tasks.
        rows: Held-out rows of each at most.
        batch_size: Rows that go through the model at once.
        step: Steps done.
        seconds: Time spent training.

    Raises:
        RunError: A loss is no number.
    """
    losses, tallies = {}, {}
    for index, task in enumerate(tasks):
        batches = map(collate, in_lots(task.test, index, limit=rows, size=batch_size))
        try:
            result = held_out(model, batches)
        except ValidationError as error:  # results hold finite numbers only
            raise diverged(task.name, step) from error
        losses[task.name] = result.loss
        if result.tally is not None:
            tallies[task.name] = result.tally
    routing = routing_of(model)
    return EvalEvent(
        step=step,
        seconds=seconds,
        tasks=losses,
        expert_load=routing.load_by_group(tallies) if routing is not None else None,
        gate_entropy=routing.entropy_by_group(tallies) if routing is not None else None,
    )


def conflict(model: PeftModel, tasks: Sequence[Task], packer: Packer, *, rows: int, step: int) -> ConflictEvent:
    """The gradients of all tasks, compared; every process measures alike.

    Args:
        model: The wrapped model; it is left as it is.
        tasks: The tasks.
        packer: Parts their rows into micro-batches.
        rows: Training rows of each at most.
        step: Steps done.
    """
    started = time.perf_counter()
    batches = [
        packer(task.train.examples(range(min(rows, len(task.train))), number)) for number, task in enumerate(tasks)
    ]
    # What the probe asks of the experts is no part of what training does.
    with tallying(model) if routing_of(model) is not None else nullcontext():
        groups = gradient_conflict(model, batches)
    return ConflictEvent(
        step=step,
        cost_seconds=time.perf_counter() - started,
        rows=rows,
        tasks=[task.name for task in tasks],
        groups=groups,
    )
