"""The LoRA that a run is for some gates, and what it costs: both measured on rows of the run's tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

import torch
from peft import PeftModel
from torch import Tensor

from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.routing import routing_of
from malora_cli.data.batch import Batch, Packer
from malora_cli.data.splits import Split
from malora_cli.data.tasks import Task
from malora_cli.export.cost import Cost, costs
from malora_cli.export.fit import Moments, fitted_lora, moments
from malora_cli.export.gates import Gates
from malora_cli.export.static import StaticLora, static_lora
from malora_cli.modeling.heldout import held_out
from malora_cli.modeling.memory import fitting

_LOT = 1000
_FIX = "Export on a device with more memory."


def loras_of(
    model: PeftModel, choices: Mapping[str, Gates], tasks: Iterable[Task], rows: int, packer: Packer
) -> dict[str, StaticLora]:
    """The LoRAs that a routed model is for some gates, by name; a task's rows are gone through once for all of them.

    Args:
        model: The wrapped model.
        choices: The gates by name.
        tasks: The run's tasks; gates are measured on training rows, so that validation rows can say what they cost.
        rows: Rows of each task to measure on at most.
        packer: How many rows go through the model at once.
    """
    split = {task.name: task.train for task in tasks}

    @cache
    def mean_gates(task: str) -> Tensor:
        return _mean_gates(model, split[task], rows, packer)

    @cache
    def moments_of(task: str, half: int) -> dict[str, Moments]:
        return _moments(model, split[task], rows, half, packer)

    def lora(gates: Gates) -> StaticLora:
        if gates.shares is None:
            return static_lora(model, uniform_gates(model))
        shares = {task: gates.shares[task] for task in split if gates.shares.get(task)}
        if not gates.fit:
            return static_lora(model, torch.stack([mean_gates(task) * share for task, share in shares.items()]).sum(0))
        halves: list[dict[str, Moments]] = []
        for half in range(2):
            seen = [(moments_of(task, half), share) for task, share in shares.items()]
            halves.append({name: _sum([found[name].weighing(share) for found, share in seen]) for name in seen[0][0]})
        return fitted_lora(model, halves)

    return {name: lora(gates) for name, gates in choices.items()}


def _sum(seen: Sequence[Moments]) -> Moments:
    total = seen[0]
    for one in seen[1:]:
        total = total + one
    return total


def uniform_gates(model: PeftModel) -> Tensor:
    """The same gate for every expert of a router, summing to what its gates sum to.

    Returns:
        Gates, shape ``(routers, experts)``, 0 where a router has fewer.
    """
    routing, adapter = routing_of(model), model.active_adapter
    assert routing is not None
    rows = []
    for name in routing.names:
        layer = model.get_base_model().get_submodule(name)
        assert isinstance(layer, MixtureLinear)
        config = layer.malora_config[adapter]
        kept = config.top_k or config.experts
        # Without division by their sum, an even softmax gives each of the kept ones 1 / E.
        total = 1.0 if config.renormalize else kept / config.experts
        rows.append(torch.full((config.experts,), total / config.experts))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _mean_gates(model: PeftModel, rows: Split, limit: int, packer: Packer) -> Tensor:
    """Mean gates of every router over the tokens of some rows, shape ``(routers, experts)``."""

    def measure(packer: Packer) -> Tensor:
        tally = held_out(model, _batches(rows, rows.sample(limit), packer)).tally
        assert tally is not None
        return tally.mean_gate_LE

    return fitting(measure, packer, f"rows of {rows.source}", fix=_FIX)[0]


def _moments(model: PeftModel, rows: Split, limit: int, half: int, packer: Packer) -> dict[str, Moments]:
    """What a fit needs of every second row, from the first or the second."""
    drawn = rows.sample(limit)
    numbers = drawn[half::2] if len(drawn) > 1 else drawn
    batches = lambda packer: moments(model, _batches(rows, numbers, packer))  # noqa: E731
    return fitting(batches, packer, f"rows of {rows.source}", fix=_FIX)[0]


def costs_of(
    model: PeftModel, task: Task, loras: Mapping[str, StaticLora], limit: int | None, packer: Packer
) -> dict[str, Cost]:
    """What some LoRAs cost a task that has validation rows, each by its name."""
    rows = task.validation

    def measure(packer: Packer) -> dict[str, Cost]:
        return costs(model, task.name, _batches(rows, rows.sample(limit), packer), loras)

    return fitting(measure, packer, f"rows of {rows.source}", fix=_FIX)[0]


def _batches(rows: Split, numbers: Sequence[int], packer: Packer) -> Iterator[Batch]:
    for start in range(0, len(numbers), _LOT):
        yield from packer(rows.examples(numbers[start : start + _LOT], 0))
