"""The four steps on a few random tokens, by which one way to compute them is held to another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from malora_cli.adapters.entrywise.pull import Pull
from malora_cli.adapters.entrywise.steps import Steps

#: How far float32 may be off, in shares of the whole; and what is float32 whatever the hidden states are.
_EXACT = 1e-5
_OF_ROUTERS = ("logits", "gates", "loads", "balance losses")


class Sizes(NamedTuple):
    """What is asked of the steps."""

    tokens: int = 70
    experts: int = 6
    rank: int = 12
    top_k: int = 2
    renormalize: bool = True
    dtype: torch.dtype = torch.bfloat16  # of the hidden states, and of the logits' gradient
    terms: int = 2  # whose sum are the logits
    masked: bool = True


@torch.no_grad()
def outcome(steps: Steps, sizes: Sizes, device: torch.device) -> dict[str, Tensor]:
    """Everything that the steps give, by name; the tokens are the same in each call."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu").to(device, dtype)

    tokens, experts, rank, top_k, renormalize, dtype, terms, masked = sizes
    # Every second entry of a wider one, as a part of a batch may be.
    mask = (torch.arange(2 * tokens, device=device) % 5).clamp(max=1)[None, ::2] if masked else None
    assigned_E, balance_E = torch.zeros(2, experts, dtype=torch.float32, device=device)
    logits_TE, gate_TE = steps.choose(
        drawn(tokens, terms * experts).split(experts, dim=-1),
        top_k=top_k,
        renormalize=renormalize,
        token_mask=mask,
        assigned_E=assigned_E,
    )
    gated_TER = steps.gate_(drawn(tokens, experts, rank, dtype=dtype), gate_TE, 2.0)
    hidden_TER, grad_TER = (drawn(tokens, experts, rank, dtype=dtype) for _ in range(2))
    grad_gate = steps.gated_gradients_(hidden_TER, grad_TER, gate_TE, 2.0)
    pull_E = drawn(experts)
    pull = Pull(pull_E, pull_E / 2, torch.tensor(0.3, device=device), mask, balance_E)
    grad_logits = steps.logits_gradient(grad_gate, logits_TE, gate_TE, renormalize=renormalize, pull=pull, dtype=dtype)
    return {
        "logits": logits_TE,
        "gates": gate_TE,
        "loads": assigned_E,
        "balance losses": balance_E,
        "gated hidden states": gated_TER,
        "hidden states of the backward pass": hidden_TER,
        "gradients by hidden states": grad_TER,
        "gradients by gates": grad_gate,
        "gradients by logits": grad_logits,
    }


def differing(steps: Steps, other: Steps, sizes: Sizes, device: torch.device) -> list[str]:
    """Names of what two ways give otherwise than rounding explains."""
    rounding = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(sizes.dtype, _EXACT)
    ours, theirs = (outcome(way, sizes, device) for way in (steps, other))
    within = {name: _EXACT if name in _OF_ROUTERS else rounding for name in ours}
    return [name for name, value in ours.items() if not _distance(value, theirs[name]) <= within[name]]


def _distance(one: Tensor, other: Tensor) -> float:
    if one.dtype != other.dtype:
        return float("inf")
    whole = other.float().norm()
    return float((one.float() - other.float()).norm() / whole) if whole else float(one.float().norm())
