"""Examples as one row of tokens, without padding.

The examples of a micro-batch stand behind one another with position ids that restart, which transformers' attention
masks read as separate sequences. Every token is a real one, and the language-model head runs only where the next
token is supervised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypedDict

import torch
from torch import Tensor

from malora_cli.data.encoding import Encoded
from malora_cli.data.packing import packs


@dataclass(frozen=True)
class TrainExample(Encoded):
    """One encoded example and the number of the task it belongs to."""

    task: int


class Batch(TypedDict):
    """One micro-batch of T tokens, K of them supervised; tensors are int64.

    ``positions`` are those whose *next* token is supervised; ``targets`` are these tokens.
    """

    input_ids: Tensor  # (1, T)
    position_ids: Tensor  # (1, T), from 0 in each example
    positions: Tensor  # (K,)
    targets: Tensor  # (K,)
    tasks: Tensor  # (K,) task of each target
    examples: Tensor  # (K,) example of each target within the batch
    lengths: tuple[int, ...]  # tokens of each example, on the host, so that nothing waits for a GPU to be told them


@dataclass(frozen=True)
class Packer:
    """Parts the examples of a step into micro-batches, rows behind one another and none padded.

    Args:
        rows: Examples of a micro-batch at most.
        tokens: Tokens of one at most; None counts rows only.
    """

    rows: int
    tokens: int | None = None

    @property
    def half(self) -> Packer | None:
        """Micro-batches of half the size; None where one row is one already."""
        if self.rows == 1:
            return None
        return Packer(self.rows // 2, None if self.tokens is None else max(1, self.tokens // 2))

    def parted(self, examples: Sequence[TrainExample]) -> list[list[TrainExample]]:
        """The examples of each micro-batch."""
        lengths = [len(example.input_ids) for example in examples]
        return [[examples[row] for row in pack] for pack in packs(lengths, tokens=self.tokens, rows=self.rows)]

    def __call__(self, examples: Sequence[TrainExample]) -> list[Batch]:
        """The micro-batches."""
        return [collate(pack) for pack in self.parted(examples)]


def collate(examples: Sequence[TrainExample]) -> Batch:
    """Put examples behind one another."""
    ids = [torch.tensor(example.input_ids) for example in examples]
    lengths = tuple(len(row) for row in ids)
    starts = torch.tensor([0, *accumulate(lengths[:-1])])
    # The first token of a row has nothing before it to be predicted from.
    supervised = [[at for first, last in example.spans for at in range(max(first, 1), last)] for example in examples]
    counts = torch.tensor([len(targets) for targets in supervised])
    flat = torch.cat(ids)
    at = torch.tensor([at for targets in supervised for at in targets], dtype=torch.int64)
    at += starts.repeat_interleave(counts)
    return Batch(
        input_ids=flat.unsqueeze(0),
        position_ids=torch.cat([torch.arange(len(row)) for row in ids]).unsqueeze(0),
        positions=at - 1,
        targets=flat[at],
        tasks=torch.tensor([example.task for example in examples]).repeat_interleave(counts),
        examples=torch.arange(len(examples)).repeat_interleave(counts),
        lengths=lengths,
    )
