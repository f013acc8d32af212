"""The up-projection with each expert's tokens gathered, for mixtures too large to multiply all experts out.

The dense product costs every token all E*R ranks, though K*R of them have a gate. Gathering reads and writes the rows
of the output once more for each of its K experts, which costs about as much as a hundred ranks do. Shape suffixes as
in ``kernel``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from malora_cli.adapters.product import product

#: Ranks without a gate from which gathering was the faster way at 1,024 tokens and more on two CPU cores
#: (``benchmarks/adapters.py growth``).
_IDLE_RANKS = 192
#: Below so many tokens for an expert its products are too small to be worth a call each.
_TOKENS_EACH = 32


def gathering_pays(gate_TE: Tensor, up_OQ: Tensor, top_k: int) -> bool:
    """Whether to gather: from the shapes alone. On a GPU it would wait for the number of tokens of every expert."""
    experts = gate_TE.shape[-1]
    idle = (experts - top_k) * (up_OQ.shape[1] // experts)
    tokens = gate_TE.numel() // experts
    return gate_TE.device.type == "cpu" and idle >= _IDLE_RANKS and tokens * top_k >= _TOKENS_EACH * experts


def add_gathered(y_TO: Tensor, gated_TER: Tensor, gate_TE: Tensor, up_OQ: Tensor) -> Tensor:
    """``y`` with every expert's update of its own tokens added in place.

    Args:
        y_TO: Output of the frozen linear.
        gated_TER: Hidden states times gates.
        gate_TE: Gates; an expert's tokens are those with one.
        up_OQ: U.
    """
    for expert, up_OR in enumerate(up_OQ.split(gated_TER.shape[-1], dim=1)):
        token_M = gate_TE[:, expert].nonzero().squeeze(1)
        y_TO.index_add_(0, token_M, product(gated_TER[token_M, expert], up_OR))
    return y_TO


def gradients_gathered(grad_TO: Tensor, gated_TER: Tensor, gate_TE: Tensor, up_OQ: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the gated hidden states, zero where there is no gate, and of U.

    Args:
        grad_TO: Gradient of the output.
        gated_TER: As for `add_gathered`, and so are the others.
        gate_TE: Gates.
        up_OQ: U.
    """
    grad_TER, grad_up_OQ = torch.zeros_like(gated_TER), torch.empty_like(up_OQ)
    rank = gated_TER.shape[-1]
    columns = zip(up_OQ.split(rank, dim=1), grad_up_OQ.split(rank, dim=1), strict=True)
    for expert, (up_OR, grad_up_OR) in enumerate(columns):
        token_M = gate_TE[:, expert].nonzero().squeeze(1)
        grad_MO = grad_TO[token_M]
        grad_TER[token_M, expert] = product(grad_MO, up_OR.T)
        grad_up_OR.copy_(product(gated_TER[token_M, expert].T, grad_MO.T).T)
    return grad_TER, grad_up_OQ
