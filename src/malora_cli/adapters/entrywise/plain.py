"""The four steps by PyTorch's operations: what runs on a CPU, and what Triton's kernels are held to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from malora_cli.adapters.entrywise.pull import Pull
from malora_cli.adapters.kernel import balance_by_expert, expert_load, top_gates
from malora_cli.adapters.logits import sum_of


def choose(
    terms_TE: Sequence[Tensor],
    *,
    top_k: int,
    renormalize: bool,
    token_mask: Tensor | None = None,
    assigned_E: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The logits of a router and its `kernel.top_gates`.

    Args:
        terms_TE: One or two tensors whose sum are the logits, float32.
        top_k: Experts kept for a token.
        renormalize: Whether the kept gates are divided by their sum.
        token_mask: As in `kernel.expert_load`.
        assigned_E: Zeros, which become the number of real tokens that chose each expert; None where nobody asks.
    """
    logits_TE = sum_of(terms_TE)
    gate_TE = top_gates(logits_TE, top_k=top_k, renormalize=renormalize)
    if assigned_E is not None:
        expert_load(gate_TE, token_mask, out=assigned_E)
    return logits_TE, gate_TE


def gate_(hidden_TER: Tensor, gate_TE: Tensor, scaling: float) -> Tensor:
    """``hidden * gate * scaling``, in place."""
    return hidden_TER.mul_(_scaled(gate_TE, scaling, hidden_TER).unsqueeze(-1))


def gated_gradients_(hidden_TER: Tensor, grad_TER: Tensor, gate_TE: Tensor, scaling: float) -> Tensor:
    """The gradient by the gates of what `gate_` has computed.

    Args:
        hidden_TER: Becomes what `gate_` makes of it.
        grad_TER: Gradient of that; becomes the gradient by what it was made of.
        gate_TE: Gates.
        scaling: As for `gate_`.

    Returns:
        Float32, shape ``(T, E)``.
    """
    scaled_TE1 = _scaled(gate_TE, scaling, hidden_TER).unsqueeze(-1)
    grad_gate = (hidden_TER * grad_TER).sum(-1, dtype=torch.float32).mul_(scaling)
    hidden_TER.mul_(scaled_TE1)
    grad_TER.mul_(scaled_TE1)
    return grad_gate


def _scaled(gate_TE: Tensor, scaling: float, hidden_TER: Tensor) -> Tensor:
    return torch.mul(gate_TE, scaling, out=torch.empty_like(gate_TE, dtype=hidden_TER.dtype))


def logits_gradient(
    grad_TE: Tensor, logits_TE: Tensor, gate_TE: Tensor, *, renormalize: bool, pull: Pull | None, dtype: torch.dtype
) -> Tensor:
    """The gradient by a router's logits of what its gates go into, and of its balance loss.

    Renormalised gates are a softmax over the kept logits: experts outside the top k have a gate of 0, and so a gradient
    of 0. Literal ones are the softmax over all, of which the kept alone have a gradient. The balance loss adds
    ``p * (pull - sum_t p_t pull_t)`` for every real token.

    Args:
        grad_TE: Gradient by the gates, float32.
        logits_TE: Of the router, float32.
        gate_TE: The gates that it chose by them.
        renormalize: Whether these are divided by their sum.
        pull: Of the balance loss, where there is one.
        dtype: What the gradient is wanted in.
    """
    probability_TE = logits_TE.softmax(-1) if pull is not None or not renormalize else gate_TE
    kept = (grad_TE, gate_TE) if renormalize else (grad_TE * (gate_TE > 0), probability_TE)
    grad_logits = _through_softmax(*kept)
    if pull is not None:
        if pull.balance_E is not None:
            pull.balance_E.copy_(balance_by_expert(probability_TE, pull.pull_E, pull.token_mask))
        pull_TE = (pull.weighted_E * pull.weight).expand_as(probability_TE)
        if pull.token_mask is not None:
            pull_TE = pull_TE * pull.token_mask.reshape(*pull_TE.shape[:-1], 1).to(pull_TE)
        grad_logits += _through_softmax(pull_TE, probability_TE)
    return grad_logits.to(dtype)


def _through_softmax(grad_TE: Tensor, probability_TE: Tensor) -> Tensor:
    """``p * (grad - sum_t p_t grad_t)``: the gradient by the logits, in one kernel."""
    return torch._softmax_backward_data(grad_TE.contiguous(), probability_TE, -1, probability_TE.dtype)
