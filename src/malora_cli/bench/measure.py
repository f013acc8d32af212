"""Timing of training steps and of decoding.

Rows take turns, so that whatever else the machine does meets all of them alike.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from malora_cli.bench.workload import PEER, Workload
from malora_cli.modeling import round_experts
from malora_cli.modeling.loss import token_nats
from malora_cli.modeling.modes import as_trained

#: Every so many positions are supervised, as where answers are a quarter of the text.
_SUPERVISED_EVERY = 4


@dataclass(frozen=True)
class StepCost:
    """What one training step costs under one method; times are medians over the rounds.

    ``ratio`` is the median over rounds of this row's step over the peer's in the same round, and ``spread`` its
    quartiles.
    """

    name: str
    trainable: int
    forward_seconds: float
    backward_seconds: float
    optimiser_seconds: float
    step_seconds: float
    ratio: float
    spread: tuple[float, float]
    peak_bytes: int


@dataclass(frozen=True)
class DecodeCost:
    """Greedy decoding with a cache under one method: the median over rounds, and its share of the peer's pace."""

    name: str
    batch: int
    tokens_per_second: float
    ratio: float


class Stepper:
    """One row: a model with its optimiser, ready to train on one batch.

    Args:
        model: In training mode.
        workload: What it is measured on.
    """

    def __init__(self, model: nn.Module, workload: Workload) -> None:
        self.model, self.workload = model, workload
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.trainable = sum(parameter.numel() for parameter in trained)
        self.optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True) if trained else None
        self.batch = _batch(workload, _vocabulary(model))

    def __call__(self) -> tuple[float, ...]:
        """One step; seconds of its parts."""
        marks = [_now(self.workload)]
        with as_trained(self.model):
            loss = token_nats(self.model, self.batch).mean()
        marks.append(_now(self.workload))
        loss.backward()
        marks.append(_now(self.workload))
        if self.optimiser is not None:
            self.optimiser.step()
            self.optimiser.zero_grad()
        marks.append(_now(self.workload))
        return tuple(after - before for before, after in itertools.pairwise(marks))

    def peak_bytes(self) -> int:
        """Weights, optimiser state and the most that one step holds beside them."""
        held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self._kept()}
        return sum(held.values()) + (self._cuda_peak() if self.workload.device == "cuda" else self._cpu_peak())

    def _kept(self) -> Iterator[torch.Tensor]:
        yield from self.model.parameters()
        yield from self.model.buffers()
        if self.optimiser is not None:
            for state in self.optimiser.state.values():
                yield from (value for value in state.values() if isinstance(value, torch.Tensor))

    def _cuda_peak(self) -> int:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self()
        return torch.cuda.max_memory_allocated() - before

    def _cpu_peak(self) -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self()
        events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        return peak


def _now(workload: Workload) -> float:
    """The time at which everything asked of the device so far is done."""
    if workload.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().num_embeddings)


def _batch(workload: Workload, vocabulary: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (1, workload.tokens + 1), generator=generator)
    positions = torch.arange(_SUPERVISED_EVERY - 1, workload.tokens, _SUPERVISED_EVERY)
    batch = {
        "input_ids": ids[:, :-1],
        "position_ids": torch.arange(workload.tokens).unsqueeze(0),
        "positions": positions,
        "targets": ids[0, positions + 1],
    }
    return {**{name: value.to(workload.device) for name, value in batch.items()}, "lengths": (workload.tokens,)}


def in_turns(runs: Mapping[str, Callable[[], Any]], rounds: int, tick: Callable[[str], None]) -> dict[str, list[Any]]:
    """Call every row once a round and keep what it returns; the first round, which warms up, is left out."""
    found: dict[str, list[Any]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        tick(f"round {number} of {rounds}" if number else "warming up")
        for name, run in runs.items():
            result = run()
            if number:
                found[name].append(result)
    return found


def step_costs(
    models: Mapping[str, nn.Module], workload: Workload, *, rounds: int, tick: Callable[[str], None] = lambda _: None
) -> list[StepCost]:
    """Time the training steps of all rows in turns."""
    steppers = {name: Stepper(model, workload) for name, model in models.items()}
    parts = in_turns(steppers, rounds, tick)
    steps = {name: [sum(part) for part in found] for name, found in parts.items()}
    costs = []
    for name, stepper in steppers.items():
        forward, backward, optimiser = (median(column) for column in zip(*parts[name], strict=True))
        ratios = sorted(own / peer for own, peer in zip(steps[name], steps[PEER], strict=True))
        costs.append(
            StepCost(
                name,
                stepper.trainable,
                forward,
                backward,
                optimiser,
                median(steps[name]),
                median(ratios),
                (ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]),
                stepper.peak_bytes(),
            )
        )
    return costs


def decode_costs(
    models: Mapping[str, nn.Module],
    workload: Workload,
    *,
    batches: Sequence[int],
    rounds: int,
    new_tokens: int = 32,
    tick: Callable[[str], None] = lambda _: None,
) -> list[DecodeCost]:
    """Time greedy decoding with a cache at each batch size; ``workload.tokens`` is the length of the prompts."""
    costs = []
    for batch in batches:
        found = in_turns(
            {name: _Decoder(model, workload, batch, new_tokens) for name, model in models.items()}, rounds, tick
        )
        for name, seconds in found.items():
            ratios = [peer / own for own, peer in zip(seconds, found[PEER], strict=True)]
            costs.append(DecodeCost(name, batch, batch * new_tokens / median(seconds), median(ratios)))
    return costs


class _Decoder:
    def __init__(self, model: Any, workload: Workload, batch: int, new_tokens: int) -> None:
        self.model, self.workload, self.new_tokens = model.eval(), workload, new_tokens
        round_experts(self.model)  # as `malora eval` and `malora chat` do
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, _vocabulary(model), (batch, workload.tokens), generator=generator)
        self.ids = ids.to(workload.device)

    @torch.no_grad()
    def __call__(self) -> float:
        """Seconds a pass takes beyond that over the prompt alone."""
        prompt, both = self._seconds(1), self._seconds(self.new_tokens + 1)
        return both - prompt

    def _seconds(self, new_tokens: int) -> float:
        started = _now(self.workload)
        with as_trained(self.model):
            self.model.generate(
                input_ids=self.ids,
                attention_mask=torch.ones_like(self.ids),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return _now(self.workload) - started
