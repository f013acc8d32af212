"""Tables of ``malora bench``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from malora_cli.bench.measure import DecodeCost, StepCost
from malora_cli.cli._terminal import plain_table

_GIB = 1 << 30


def step_table(costs: Iterable[StepCost]) -> Table:
    """One row a method: parameters, seconds of a step's parts, the ratio to PEFT's LoRA and peak memory."""
    table = plain_table(
        ("method",),
        ("trainable", "forward s", "backward s", "optimiser s", "step s", "/ PEFT LoRA", "quartiles", "peak GiB"),
    )
    for cost in costs:
        times = (cost.forward_seconds, cost.backward_seconds, cost.optimiser_seconds, cost.step_seconds)
        table.add_row(
            Text(cost.name),
            f"{cost.trainable:,}",
            *(f"{seconds:.3f}" for seconds in times),
            f"{cost.ratio:.2f}",
            f"{cost.spread[0]:.2f}-{cost.spread[1]:.2f}",
            f"{cost.peak_bytes / _GIB:.3f}",
        )
    return table


def decode_table(costs: Iterable[DecodeCost]) -> Table:
    """One row a method and batch size: tokens a second, and the ratio to PEFT's LoRA."""
    table = plain_table(("method",), ("batch", "tokens/s", "/ PEFT LoRA"))
    for cost in costs:
        table.add_row(Text(cost.name), str(cost.batch), f"{cost.tokens_per_second:.1f}", f"{cost.ratio:.2f}")
    return table
