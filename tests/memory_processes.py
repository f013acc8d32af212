"""What one of two processes does that are short of memory; a module of its own, so that it starts fast."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn

from malora_cli.data.batch import Packer, TrainExample, collate
from malora_cli.modeling import loss
from malora_cli.modeling.loss import note_plain_head
from malora_cli.recipe import TrainSettings
from malora_cli.train import probe, sharding
from presets import routed
from tiny_models import VOCABULARY, tokens


def rows() -> list[TrainExample]:
    """Four rows, the longest first."""
    return [TrainExample(tokens(size, seed=size).tolist(), [(2, size)], 0) for size in (12, 9, 5, 4)]


def run(rank: int, folder: str) -> None:
    """Write what is measured where one process lacks memory, and the losses of a model that is spread over both."""
    os.environ |= {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "RANK": str(rank)}
    torch.set_num_threads(1)
    # Calls that do not pair up end in an error, not in a test that never does.
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    found = {"packer": _measured(rank), **_spread()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def _measured(rank: int) -> list[int | None]:
    """The micro-batches that fitted where the second process has memory for one row and the first for all."""
    plain = probe.token_nats

    def crowded(model: nn.Module, part: Any) -> Tensor:
        if rank == 1 and part["input_ids"].numel() > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(model, part)

    with patch.object(probe, "token_nats", crowded), patch.object(probe, "longest_step", lambda _: rows()):
        cost = probe.measure_longest_step(routed("malora"), None, Packer(4), TrainSettings(steps=1))
    return [cost.packer.rows, cost.packer.tokens]


def _spread() -> dict[str, list[float]]:
    """Losses, gradients' norms and calls of the head where its logits have room for five positions."""
    model = routed("malora")
    note_plain_head(model.get_base_model())
    sharding.shard(model)
    chunks: list[float] = []
    model.get_base_model().lm_head.register_forward_hook(lambda *call: chunks.append(call[2].shape[-2]))
    with patch.object(loss, "LOGITS_BYTES", 5 * VOCABULARY * 4):
        nats_K = loss.token_nats(model, collate(rows()))
        nats_K.sum().backward()
    norms = [float(sharding.whole(p.grad).norm()) for p in model.parameters() if p.grad is not None]
    return {"chunks": chunks, "nats": nats_K.tolist(), "norms": norms}
