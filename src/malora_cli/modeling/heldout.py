"""The held-out loss of one task, and what its tokens asked of the experts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from malora_cli.adapters.routing import RoutingTally, routing_of, tallying
from malora_cli.modeling.loss import example_nats
from malora_cli.results import TaskLoss


@dataclass(frozen=True)
class HeldOut:
    """Loss of one task on its held-out rows; ``tally`` is None for a model without routers.

    ``examples`` has the nats and the tokens of each row, in order.
    """

    loss: TaskLoss
    tally: RoutingTally | None
    examples: list[tuple[float, int]]


def held_out(model: PeftModel, batches: Iterable[Mapping[str, Any]]) -> HeldOut:
    """Measure one task.

    Args:
        model: The wrapped model, its adapter active or disabled.
        batches: The task's held-out rows, collated.
    """
    routed = routing_of(model) is not None
    with tallying(model) if routed else nullcontext() as tally:
        examples = example_nats(model, batches)
        return HeldOut(TaskLoss.of_examples(examples), tally, examples)
