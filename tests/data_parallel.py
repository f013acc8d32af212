"""One training step in one process, or in two with a part of the batch each.

A module of its own, so that it starts fast.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from presets import routed
from tiny_models import tokens

#: Real tokens of the rows; the first process takes the first row, and so far fewer tokens than the second.
LENGTHS = (4, 9, 9, 7)
SPLIT = 1
#: Methods, and whether activations are computed again.
CASES = (("malora", False), ("malora", True), ("mixlora", False), ("hydralora", False))


def batch() -> dict[str, Tensor]:
    """The rows of both processes, padded on the right; prompts are not supervised."""
    ids = tokens(len(LENGTHS), max(LENGTHS), seed=3)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :2] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(method: str, rows: slice, *, processes: int, checkpointing: bool = False) -> dict[str, Tensor]:
    """Gradients of the adapter for some rows of the batch, averaged over the processes."""
    model = routed(method)
    if checkpointing:
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    whole = batch()
    supervised = (whole["labels"][:, 1:] != -100).sum()
    wrapped: nn.Module = DistributedDataParallel(model) if processes > 1 else model
    part = {name: value[rows] for name, value in whole.items()}
    # What trainers do: the mean over processes is over the supervised tokens of all of them.
    wrapped(**part, num_items_in_batch=supervised / processes).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def path(folder: Path, rank: int, method: str, checkpointing: bool) -> Path:
    """Where a process writes the gradients of a case."""
    return folder / f"{method}-{checkpointing}-{rank}.safetensors"


def run(rank: int, folder: str) -> None:
    """Write the gradients that one of two processes ends with, for every case."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    rows = slice(0, SPLIT) if rank == 0 else slice(SPLIT, len(LENGTHS))
    for method, checkpointing in CASES:
        found = gradients(method, rows, processes=2, checkpointing=checkpointing)
        save_file(found, path(Path(folder), rank, method, checkpointing))
    dist.destroy_process_group()
