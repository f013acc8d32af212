"""What is measured at an evaluation: the validation loss of every task, and how far the tasks' gradients pull apart."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TypeVar

from peft import PeftModel
from pydantic import ValidationError
from torch.distributed.fsdp import FSDPModule

from malora_cli.adapters.routing import routing_of, tallying
from malora_cli.data.batch import Packer, TrainExample
from malora_cli.data.tasks import Task
from malora_cli.errors import RunError
from malora_cli.modeling.heldout import HeldOut, held_out
from malora_cli.modeling.memory import Attempt, fitting
from malora_cli.results import ConflictEvent, EvalEvent
from malora_cli.train.conflict import gradient_conflict
from malora_cli.train.task_losses import diverged
from malora_cli.train.trouble import ONE_ROW, SMALLER, not_in_one_process

T = TypeVar("T")


def evaluation(
    model: PeftModel, tasks: Sequence[Task], packer: Packer, *, rows: int, step: int, seconds: float
) -> EvalEvent:
    """Validation loss of every task, and what its tokens asked of the experts; every process measures all of it.

    Args:
        model: The wrapped model.
        tasks: The tasks.
        packer: Parts their rows into micro-batches, smaller ones where memory does not suffice.
        rows: Validation rows of each at most; tasks without any are passed over.
        step: Steps done.
        seconds: Time spent training.

    Raises:
        RunError: A loss is no number.
    """
    losses, tallies = {}, {}
    for number, task in enumerate(tasks):
        if not (sample := task.validation.sample(rows)):
            continue
        where = f"the validation rows of '{task.name}' at step {step}"
        try:
            measured = _held_out(model, task.validation.examples(sample, number), packer, where)
        except ValidationError as error:  # results hold finite numbers only
            raise diverged(task.name, step) from error
        if measured is None:
            continue
        result, packer = measured
        losses[task.name] = result.loss
        if result.tally is not None:
            tallies[task.name] = result.tally
    routing = routing_of(model)
    return EvalEvent(
        step=step,
        seconds=seconds,
        tasks=losses,
        expert_load=routing.load_by_group(tallies) if routing is not None and tallies else None,
        gate_entropy=routing.entropy_by_group(tallies) if routing is not None and tallies else None,
    )


def _held_out(
    model: PeftModel, examples: Sequence[TrainExample], packer: Packer, where: str
) -> tuple[HeldOut, Packer] | None:
    if isinstance(model, FSDPModule):  # its weights travel in every forward pass, so no process can begin anew alone
        with Attempt():
            return held_out(model, packer(examples)), packer
        raise not_in_one_process(where, SMALLER)
    return _unless_too_much(lambda packer: held_out(model, packer(examples)), packer, where)


def _unless_too_much(work: Callable[[Packer], T], packer: Packer, where: str) -> tuple[T, Packer] | None:
    """As `fitting`; but no training ends for what was only to be measured beside it: that is left out, and said."""
    try:
        return fitting(work, packer, where, fix=f"Training goes on without that. {ONE_ROW}")
    except RunError as error:
        warnings.warn(str(error), stacklevel=3)
        return None


def conflict(model: PeftModel, tasks: Sequence[Task], packer: Packer, *, rows: int, step: int) -> ConflictEvent | None:
    """The gradients of all tasks, compared; every process measures alike. None where memory does not suffice.

    Args:
        model: The wrapped model; it is left as it is.
        tasks: The tasks.
        packer: Parts their rows into micro-batches, smaller ones where memory does not suffice.
        rows: Training rows of each at most.
        step: Steps done.
    """
    started = time.perf_counter()
    examples = [task.train.examples(task.train.sample(rows), number) for number, task in enumerate(tasks)]
    # What the probe asks of the experts is no part of what training does.
    with tallying(model) if routing_of(model) is not None else nullcontext():
        compared = _unless_too_much(
            lambda packer: gradient_conflict(model, [packer(rows) for rows in examples]),
            packer,
            f"comparing the gradients of step {step}",
        )
    if compared is None:
        return None
    return ConflictEvent(
        step=step,
        cost_seconds=time.perf_counter() - started,
        rows=rows,
        tasks=[task.name for task in tasks],
        groups=compared[0],
    )
