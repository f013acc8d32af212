"""What one of two data-parallel processes does; a module of its own, so that it starts fast."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from malora_cli.adapters.kernel import (
    balance_by_expert,
    balance_pulls,
    expert_load,
    top_gates,
)
from malora_cli.adapters.logits import router_logits

SPLIT = (3, 8)  # tokens of the first process, of both


def whole_batch() -> tuple[Tensor, Tensor]:
    """Tokens of both processes, and a router that prefers other experts for the first's."""
    torch.manual_seed(0)
    x_TI, router_EI = torch.randn(SPLIT[1], 6), torch.randn(4, 6)
    x_TI[: SPLIT[0]] += router_EI[1]
    return x_TI, router_EI.requires_grad_()


class Routed(NamedTuple):
    gate_TE: Tensor
    probability_TE: Tensor


def route(x_TI: Tensor, router_EI: Tensor, *, top_k: int, renormalize: bool) -> Routed:
    """The gates of tokens and the whole softmax, from end to end."""
    logits_TE = router_logits(x_TI, router_EI)
    return Routed(top_gates(logits_TE, top_k=top_k, renormalize=renormalize), logits_TE.softmax(-1))


def balance(x_TI: Tensor, router_EI: Tensor) -> Tensor:
    """The balance loss over these tokens, in the company of the other process where there is one."""
    gates = route(x_TI, router_EI, top_k=2, renormalize=True)
    [pull_E] = balance_pulls([expert_load(gates.gate_TE, None)])
    return balance_by_expert(gates.probability_TE, pull_E, None).sum()


def run(rank: int, folder: str) -> None:
    """Write this process's balance loss and the gradient of its router."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    x_TI, router_EI = whole_batch()
    part = x_TI[: SPLIT[0]] if rank == 0 else x_TI[SPLIT[0] :]
    loss = balance(part, router_EI)
    loss.backward()
    assert router_EI.grad is not None
    Path(folder, f"{rank}.json").write_text(str([loss.item(), router_EI.grad.tolist()]), encoding="utf-8")
    dist.destroy_process_group()
