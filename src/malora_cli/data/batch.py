"""Examples as one row of tokens, without padding.

The examples of a micro-batch stand behind one another with position ids that restart, which transformers' attention
masks read as separate sequences. Every token is a real one, and the language-model head runs only where the next
token is supervised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor


@dataclass(frozen=True)
class TrainExample:
    """One encoded example and the task it belongs to."""

    input_ids: list[int]
    prompt_tokens: int
    task: int


class Batch(TypedDict):
    """One micro-batch of T tokens, K of them supervised; all int64.

    ``positions`` are those whose *next* token is supervised; ``targets`` are these tokens.
    """

    input_ids: Tensor  # (1, T)
    position_ids: Tensor  # (1, T), from 0 in each example
    positions: Tensor  # (K,)
    targets: Tensor  # (K,)
    tasks: Tensor  # (K,) task of each target
    examples: Tensor  # (K,) example of each target within the batch


def collate(examples: Sequence[TrainExample]) -> Batch:
    """Put examples behind one another."""
    ids = [torch.tensor(example.input_ids) for example in examples]
    lengths = torch.tensor([len(row) for row in ids])
    starts = lengths.cumsum(0) - lengths
    # The first token of a row has nothing before it to be predicted from.
    first = [max(example.prompt_tokens, 1) for example in examples]
    supervised = [
        torch.arange(int(start) + at, int(start) + len(row)) for start, at, row in zip(starts, first, ids, strict=True)
    ]
    counts = torch.tensor([len(targets) for targets in supervised])
    flat, at = torch.cat(ids), torch.cat(supervised)
    return Batch(
        input_ids=flat.unsqueeze(0),
        position_ids=torch.cat([torch.arange(len(row)) for row in ids]).unsqueeze(0),
        positions=at - 1,
        targets=flat[at],
        tasks=torch.tensor([example.task for example in examples]).repeat_interleave(counts),
        examples=torch.arange(len(examples)).repeat_interleave(counts),
    )
