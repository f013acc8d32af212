"""What a mixture amounts to, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from malora_cli.data.batch import Packer, TrainExample
from malora_cli.data.mixture import Mixture
from malora_cli.data.packing import packs
from malora_cli.data.tasks import Task

#: Steps that stand for all of them where the packs of a step are counted.
_STEPS = 64


@dataclass(frozen=True)
class TaskStatement:
    """What one task brings and what it gets; shares and passes are of the whole training."""

    task: Task
    share: float
    label_share: float
    passes: float

    @property
    def input_tokens(self) -> int:
        """Tokens that are context only."""
        return self.task.train.tokens - self.task.train.label_tokens


@dataclass(frozen=True)
class Statement:
    """What a mixture amounts to.

    Args:
        tasks: Every task.
        steps: Optimiser steps.
        batch_size: Rows of each.
        step_tokens: Tokens of a step, mean over steps throughout the training; none of them is padding.
        micro_batches: Micro-batches of a step, likewise.
        filled: Share of ``train.micro_batch_tokens`` that micro-batches use, likewise; None where only rows count.
    """

    tasks: Sequence[TaskStatement]
    steps: int
    batch_size: int
    step_tokens: float
    micro_batches: float
    filled: float | None


def state(mixture: Mixture, packer: Packer) -> Statement:
    """What training on a mixture amounts to.

    Args:
        mixture: The rows in their order.
        packer: How the rows of a step are parted.
    """
    share, labels, passes = mixture.share, mixture.label_share, mixture.passes
    tokens, count = [], []
    for step in np.unique(np.linspace(0, mixture.steps - 1, _STEPS).astype(np.int64)):
        lengths = mixture.lengths(step * mixture.batch_size + np.arange(mixture.batch_size)).tolist()
        tokens.append(sum(lengths))
        count.append(len(packs(lengths, tokens=packer.tokens, rows=packer.rows)))
    return Statement(
        tasks=[TaskStatement(task, share[task.name], labels[task.name], passes[task.name]) for task in mixture.tasks],
        steps=mixture.steps,
        batch_size=mixture.batch_size,
        step_tokens=float(np.mean(tokens)),
        micro_batches=float(np.mean(count)),
        filled=None if packer.tokens is None else sum(tokens) / (sum(count) * packer.tokens),
    )


def rendered(example: TrainExample, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """An example as the model sees it: its text in parts, each with whether it is supervised."""
    parts: list[tuple[str, bool]] = []
    end = 0
    for first, last in example.spans:
        parts += [(tokenizer.decode(example.input_ids[end:first]), False)]
        parts += [(tokenizer.decode(example.input_ids[first:last]), True)]
        end = last
    parts.append((tokenizer.decode(example.input_ids[end:]), False))
    return [(text, supervised) for text, supervised in parts if text]


def longest_step(mixture: Mixture) -> list[TrainExample]:
    """As many of the longest rows of all tasks as a step has: no step can be longer."""
    candidates = []
    for number, task in enumerate(mixture.tasks):
        rows = task.train.longest_rows(mixture.batch_size)
        candidates += [
            (length, number, row) for length, row in zip(task.train.lengths(np.array(rows)), rows, strict=True)
        ]
    candidates.sort(key=lambda candidate: -candidate[0])
    while len(candidates) < mixture.batch_size:  # fewer rows than a step has come again
        candidates += candidates
    return [mixture.tasks[task].train.examples([row], task)[0] for _, task, row in candidates[: mixture.batch_size]]
