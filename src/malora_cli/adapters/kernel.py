"""The one kernel of the family: ``dy = s * sum_t g_t(x) U_t C_t D_t x`` as dense products, without a loop over experts.

Shape suffixes in this room:

    T  tokens (any leading dimensions, flattened or not)     I  in_features      O  out_features
    E  experts      R  expert rank      S  rank of the down-projection: d where it is shared, E*R where it is not
    Q  ranks of all experts side by side, E*R

Source: MALoRA (arXiv 2410.22782), Eq. 4-7; Switch Transformers (arXiv 2101.03961), Eq. 4-6 for the balance loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


class Factors(NamedTuple):
    """The experts of one linear as the kernel takes them."""

    down_SI: Tensor  # D: the shared S_A, or the experts' A_t stacked
    coefficient_QS: Tensor | None  # C: the experts' P_t stacked; None where it is the identity (S = Q)
    up_OQ: Tensor  # U: the experts' B_t side by side


def top_gates(logits_TE: Tensor, *, top_k: int, renormalize: bool) -> Tensor:
    """Softmax over all experts, then the top k of each token (Eq. 4); 0 for experts outside the top k.

    Args:
        logits_TE: Of the router, float32.
        top_k: Experts kept for a token.
        renormalize: Divide the kept gates by their sum.
    """
    if top_k == logits_TE.shape[-1]:
        return logits_TE.softmax(dim=-1)
    # The order of logits is that of probabilities, and renormalised gates are a softmax over the kept logits alone.
    if renormalize:
        kept_TK, expert_TK = logits_TE.topk(top_k, dim=-1, sorted=False)
        kept_TK = kept_TK.softmax(dim=-1)
    else:
        kept_TK, expert_TK = logits_TE.softmax(dim=-1).topk(top_k, dim=-1, sorted=False)
    return torch.zeros_like(logits_TE).scatter_(-1, expert_TK, kept_TK)


def mixture_delta(
    x_TI: Tensor, gate_TE: Tensor, factors: Factors, *, scaling: float, base_TO: Tensor | None = None
) -> Tensor:
    """The gated low-rank update of every token.

    Args:
        x_TI: Input, after dropout.
        gate_TE: Gates.
        factors: The experts.
        scaling: ``alpha / r``; it goes into the gates, the smallest tensor there is.
        base_TO: Is added to it by the product itself, where it is given: the output of the frozen linear.

    Returns:
        Shape ``(..., O)``.
    """
    hidden = F.linear(x_TI, factors.down_SI)
    if factors.coefficient_QS is not None:
        hidden = F.linear(hidden, factors.coefficient_QS)
    gate_TE1 = (gate_TE * scaling).to(hidden.dtype).unsqueeze(-1)
    gated = hidden.unflatten(-1, (gate_TE.shape[-1], -1)) * gate_TE1
    if base_TO is None:
        return F.linear(gated.flatten(-2), factors.up_OQ)
    y_TO = torch.addmm(_flat(base_TO), _flat(gated.flatten(-2)), factors.up_OQ.T)
    return y_TO.view(base_TO.shape)


def _flat(x: Tensor) -> Tensor:
    """All leading dimensions as one, of a single vector too."""
    return x.reshape(-1, x.shape[-1])


class Load(NamedTuple):
    """How many of the real tokens of one forward pass chose each of a router's experts, and how many tokens it saw."""

    assigned_E: Tensor  # float32
    tokens: Tensor | int  # a scalar, float32, where a mask says which tokens are real


def expert_load(gate_TE: Tensor, token_mask: Tensor | None, *, out: Tensor | None = None) -> Load:
    """Count a router's choices over the real tokens.

    Args:
        gate_TE: Gates of all tokens.
        token_mask: 1 for real tokens, 0 for padding, any shape that flattens to T; None when all are real.
        out: Is written the counts to, where it is given.
    """
    flat_TE = _real(gate_TE.detach(), token_mask)
    assigned_E = torch.linalg.vector_norm(flat_TE, 0, dim=0, out=out)  # the number of those that are not 0, in one call
    return Load(assigned_E, real_tokens(gate_TE, token_mask))


def real_tokens(gate_TE: Tensor, token_mask: Tensor | None) -> Tensor | int:
    """How many tokens have gates and are real, as a `Load` has it; the mask is that of `expert_load`."""
    return gate_TE.numel() // gate_TE.shape[-1] if token_mask is None else token_mask.sum(dtype=gate_TE.dtype)


class Seen(NamedTuple):
    """What is told of a router's gates besides its load, in evaluation alone; float32, sums over the real tokens."""

    gate_E: Tensor  # the kept gates
    entropy: Tensor  # of the softmax, a scalar, see `gate_entropy`


def seen_of(gate_TE: Tensor, logits_TE: Tensor, token_mask: Tensor | None) -> Seen:
    """Both, of the gates and the logits that they are of; the mask is that of `expert_load`."""
    probability_TE = logits_TE.detach().softmax(-1)
    return Seen(_real(gate_TE.detach(), token_mask).sum(0), gate_entropy(probability_TE, token_mask))


def _real(value_TE: Tensor, token_mask: Tensor | None) -> Tensor:
    """The values of real tokens, one row each, and zeros for padding."""
    flat_TE = _flat(value_TE)
    return flat_TE if token_mask is None else flat_TE.where(token_mask.reshape(-1, 1) > 0, 0.0)  # NaN of padding too


def gate_entropy(probability_TE: Tensor, token_mask: Tensor | None) -> Tensor:
    """Entropy of a router's softmax over the largest it can have, summed over the real tokens: 1 each when uniform.

    Args:
        probability_TE: Full softmax of the router.
        token_mask: As in `expert_load`.
    """
    flat_TE = _flat(probability_TE.detach())
    entropy_T = torch.special.entr(flat_TE).sum(-1) / math.log(max(flat_TE.shape[-1], 2))
    return (entropy_T if token_mask is None else entropy_T.where(token_mask.flatten() > 0, 0.0)).sum()


def _processes() -> int:
    """Number of data-parallel processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def balance_pulls(loads: Sequence[Load]) -> list[Tensor]:
    """``N f_t / T`` of some routers: the gradient of each one's balance loss by the probability of an expert.

    It is the same for every real token. The loads are those of the batch of all data-parallel processes, with their
    *mean* number of tokens: so the mean over processes of the balance loss, and of its gradient, is that of the whole
    batch, for the loss is linear in the mean probabilities. They are exchanged at once, for every exchange is waited
    for.

    Args:
        loads: Of routers whose numbers of experts, and devices, may differ.

    Returns:
        A pull for each, shape ``(E,)``, on the device of the first.
    """
    experts, processes = [len(load.assigned_E) for load in loads], _processes()
    device = loads[0].assigned_E.device
    assigned = torch.cat([sent(load.assigned_E, device) for load in loads])
    tokens_L = numbers([load.tokens for load in loads], assigned)
    if processes > 1:
        sums = torch.cat([assigned, tokens_L])
        dist.all_reduce(sums)
        assigned, tokens_L = sums.split([sum(experts), len(loads)])
        tokens_L = tokens_L / processes
    if len(set(experts)) == 1:
        return [*_pulls(assigned.view(len(loads), -1), tokens_L)]
    parts = zip(assigned.split(experts), tokens_L, strict=True)
    return [_pulls(assigned_E, tokens) for assigned_E, tokens in parts]


def numbers(values: Sequence[Tensor | int], like: Tensor) -> Tensor:
    """Scalars as one vector, of the format and on the device of another tensor, which is not waited for."""
    if not any(isinstance(value, Tensor) for value in values):
        return sent(torch.tensor(values, dtype=like.dtype), like.device)
    return torch.stack([sent(torch.as_tensor(value, dtype=like.dtype), like.device) for value in values])


def sent(value: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, which is not waited for where that is a GPU; a processor would read it too early."""
    return value.to(device, non_blocking=device.type == "cuda")


def _pulls(assigned_E: Tensor, tokens: Tensor) -> Tensor:
    """The pull of one router, or of several with a dimension in front of both."""
    share_E = assigned_E / assigned_E.sum(-1, keepdim=True).clamp(min=1)
    return share_E * (share_E.shape[-1] / tokens.clamp(min=1)).unsqueeze(-1)


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a scalar over all data-parallel processes, float32; the scalar itself where there is one process."""
    value, processes = value.detach().float(), _processes()
    if processes == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / processes


def balance_by_expert(probability_TE: Tensor, pull_E: Tensor, token_mask: Tensor | None) -> Tensor:
    """Switch-style load-balancing loss of one router by expert, shape ``(E,)``: ``N f_t p_t``, whose sum is the loss.

    ``f_t`` is expert t's share of the (token, slot) assignments, without a gradient; ``p_t`` is its mean probability.
    The loss is 1.0 when uniform.

    Args:
        probability_TE: Full softmax of the router.
        pull_E: Its `balance_pulls` over the same tokens, or those of all processes.
        token_mask: As in `expert_load`; padding counts in neither share.
    """
    return _real(probability_TE, token_mask).sum(0) * pull_E
