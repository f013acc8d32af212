"""What is measured at an evaluation: the held-out loss of every task, and how far the tasks' gradients pull apart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext

from peft import PeftModel
from pydantic import ValidationError
from torch.distributed.fsdp import FSDPModule

from malora_cli.adapters.routing import routing_of, tallying
from malora_cli.data.batch import Packer, TrainExample
from malora_cli.data.splits import Split
from malora_cli.data.tasks import Task
from malora_cli.modeling.heldout import HeldOut, held_out
from malora_cli.modeling.memory import Attempt, fitting
from malora_cli.results import ConflictEvent, EvalEvent
from malora_cli.train.conflict import gradient_conflict
from malora_cli.train.task_losses import diverged
from malora_cli.train.trouble import ONE_ROW, SMALLER, not_in_one_process


def evaluation(
    model: PeftModel, tasks: Sequence[Task], packer: Packer, *, rows: int, step: int, seconds: float
) -> EvalEvent:
    """Held-out loss of every task, and what its tokens asked of the experts; every process measures all of it.

    Args:
        model: The wrapped model.
        tasks: The tasks.
        packer: Parts their rows into micro-batches, smaller ones where memory does not suffice.
        rows: Held-out rows of each at most.
        step: Steps done.
        seconds: Time spent training.

    Raises:
        RunError: A loss is no number, or memory does not suffice for one row.
    """
    losses, tallies = {}, {}
    for number, task in enumerate(tasks):
        try:
            result, packer = _held_out(model, _first(task.test, rows, number), packer)
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


def _first(split: Split, rows: int, task: int) -> list[TrainExample]:
    return split.examples(range(min(rows, len(split))), task)


def _held_out(model: PeftModel, examples: Sequence[TrainExample], packer: Packer) -> tuple[HeldOut, Packer]:
    where = "the held-out rows"
    if isinstance(model, FSDPModule):  # its weights travel in every forward pass, so no process can begin anew alone
        with Attempt():
            return held_out(model, packer(examples)), packer
        raise not_in_one_process(where, SMALLER)
    return fitting(lambda packer: held_out(model, packer(examples)), packer, where, fix=ONE_ROW)


def conflict(model: PeftModel, tasks: Sequence[Task], packer: Packer, *, rows: int, step: int) -> ConflictEvent:
    """The gradients of all tasks, compared; every process measures alike.

    Args:
        model: The wrapped model; it is left as it is.
        tasks: The tasks.
        packer: Parts their rows into micro-batches, smaller ones where memory does not suffice.
        rows: Training rows of each at most.
        step: Steps done.

    Raises:
        RunError: Memory does not suffice for one row.
    """
    started = time.perf_counter()
    examples = [_first(task.train, rows, number) for number, task in enumerate(tasks)]
    # What the probe asks of the experts is no part of what training does.
    with tallying(model) if routing_of(model) is not None else nullcontext():
        groups, _ = fitting(
            lambda packer: gradient_conflict(model, [packer(rows) for rows in examples]),
            packer,
            f"comparing the gradients of step {step}",
            fix=ONE_ROW,
        )
    return ConflictEvent(
        step=step,
        cost_seconds=time.perf_counter() - started,
        rows=rows,
        tasks=[task.name for task in tasks],
        groups=groups,
    )
