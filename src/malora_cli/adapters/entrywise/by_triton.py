"""The four steps by Triton, a kernel each, for NVIDIA's GPUs.

By PyTorch's operations they are two dozen kernels of a few numbers a token, each of which costs its launch. ``plain``
says what they are given and give, and tests hold them to it (``TRITON_INTERPRET=1`` runs them on a CPU). They compute
in float32.

Letters as in ``kernel``, in capitals where they are known when a kernel is compiled: a ``TILE_`` is a power of two, at
least the size that it covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from malora_cli.adapters.entrywise.pull import Pull

#: Numbers that a program of a kernel has in hand at a time.
_IN_HAND = 2048


@triton.jit
def _choose(
    first,
    second,
    logits,
    gate,
    mask,
    assigned,
    tokens,
    stride,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SECOND: tl.constexpr,
    MASK: tl.constexpr,
    ASSIGNED: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_E: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * TILE_T + tl.arange(0, TILE_T)[:, None]
    expert = tl.arange(0, TILE_E)[None, :]
    inside = (token < tokens) & (expert < E)
    x = tl.load(first + token * stride + expert, mask=inside, other=0.0)
    if SECOND:
        x += tl.load(second + token * stride + expert, mask=inside, other=0.0)
        tl.store(logits + token * E + expert, x, mask=inside)
    not_a_number = tl.sum(x * 0.0, axis=1)[:, None]  # 0 but where a logit is NaN or infinite, which a maximum hides
    x = tl.where(inside, x, float("-inf"))
    kept = inside
    if TOP_K < E:
        kept = inside & (expert < 0)
        left = x
        for _ in range(TOP_K):
            best = expert == tl.argmax(left, axis=1)[:, None]
            kept = kept | best
            left = tl.where(best, float("-inf"), left)
    weight = tl.exp(x - tl.max(x, axis=1)[:, None])
    counts = inside
    if RENORMALIZE:
        counts = kept & inside
    weight = tl.where(counts, weight, 0.0)
    share = weight / tl.sum(weight, axis=1)[:, None]
    g = tl.where(kept, share, 0.0) + not_a_number
    tl.store(gate + token * E + expert, g, mask=inside)
    if ASSIGNED:
        chosen = inside & (g != 0)
        if MASK:
            chosen = chosen & (tl.load(mask + token, mask=token < tokens, other=0) != 0)
        count = tl.sum(chosen.to(tl.float32), axis=0)  # whole numbers, so their order is all the same
        tl.atomic_add(assigned + tl.arange(0, TILE_E), count, mask=tl.arange(0, TILE_E) < E)


@triton.jit
def _places(tokens, E: tl.constexpr, R: tl.constexpr, TILE_T: tl.constexpr, TILE_E: tl.constexpr, TILE_R: tl.constexpr):
    """Where the gates of a program lie and which of them there are; the same of its hidden states."""
    token = tl.program_id(0).to(tl.int64) * TILE_T + tl.arange(0, TILE_T)[:, None]
    expert = tl.program_id(1) * TILE_E + tl.arange(0, TILE_E)[None, :]
    inside = (token < tokens) & (expert < E)
    rank = tl.arange(0, TILE_R)[None, None, :]
    of_gate = token * E + expert
    at = of_gate[:, :, None] * R + rank
    within = inside[:, :, None] & (rank < R)
    return of_gate, inside, at, within


@triton.jit
def _gate(
    hidden,
    gate,
    scaling,
    tokens,
    E: tl.constexpr,
    R: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_E: tl.constexpr,
    TILE_R: tl.constexpr,
):
    of_gate, inside, at, within = _places(tokens, E, R, TILE_T, TILE_E, TILE_R)
    g = tl.load(gate + of_gate, mask=inside, other=0.0) * scaling
    h = tl.load(hidden + at, mask=within, other=0.0).to(tl.float32)
    tl.store(hidden + at, (h * g[:, :, None]).to(hidden.dtype.element_ty), mask=within)


@triton.jit
def _gated_gradients(
    hidden,
    grad,
    gate,
    grad_gate,
    scaling,
    tokens,
    E: tl.constexpr,
    R: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_E: tl.constexpr,
    TILE_R: tl.constexpr,
):
    of_gate, inside, at, within = _places(tokens, E, R, TILE_T, TILE_E, TILE_R)
    g = (tl.load(gate + of_gate, mask=inside, other=0.0) * scaling)[:, :, None]
    h = tl.load(hidden + at, mask=within, other=0.0).to(tl.float32)
    d = tl.load(grad + at, mask=within, other=0.0).to(tl.float32)
    tl.store(grad_gate + of_gate, tl.sum(h * d, axis=2) * scaling, mask=inside)
    tl.store(hidden + at, (h * g).to(hidden.dtype.element_ty), mask=within)
    tl.store(grad + at, (d * g).to(grad.dtype.element_ty), mask=within)


@triton.jit
def _logits_gradient(
    grad,
    logits,
    gate,
    pull,
    weighted,
    weight,
    mask,
    balance,
    out,
    tokens,
    E: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    PULL: tl.constexpr,
    WEIGHT: tl.constexpr,
    MASK: tl.constexpr,
    BALANCE: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_E: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * TILE_T + tl.arange(0, TILE_T)[:, None]
    expert = tl.arange(0, TILE_E)[None, :]
    inside = (token < tokens) & (expert < E)
    at = token * E + expert
    d = tl.load(grad + at, mask=inside, other=0.0)
    g = tl.load(gate + at, mask=inside, other=0.0)
    p = g
    if PULL or not RENORMALIZE:
        x = tl.load(logits + at, mask=inside, other=float("-inf"))
        p = tl.where(inside, tl.exp(x - tl.max(x, axis=1)[:, None]), 0.0)
        p = p / tl.sum(p, axis=1)[:, None]
        p = tl.where(inside, p, 0.0)
    if RENORMALIZE:
        y = g * (d - tl.sum(g * d, axis=1)[:, None])
    else:
        d = tl.where(g > 0, d, 0.0)
        y = p * (d - tl.sum(p * d, axis=1)[:, None])
    if PULL:
        real = inside
        if MASK:
            real = inside & (tl.load(mask + token, mask=token < tokens, other=0) != 0)
        q = tl.load(weighted + expert, mask=expert < E, other=0.0)
        if WEIGHT:
            q = q * tl.load(weight)
        q = tl.where(real, q, 0.0)
        y += p * (q - tl.sum(p * q, axis=1)[:, None])
        if BALANCE:
            column = tl.arange(0, TILE_E)
            seen = tl.sum(tl.where(real, p, 0.0), axis=0) * tl.load(pull + column, mask=column < E, other=0.0)
            tl.atomic_add(balance + column, seen, mask=column < E)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


def choose(
    terms_TE: Sequence[Tensor],
    *,
    top_k: int,
    renormalize: bool,
    token_mask: Tensor | None = None,
    assigned_E: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``plain``; of two equal logits the first is kept. A NaN or infinite one spoils all gates of its token."""
    first_TE, second_TE = terms_TE[0], terms_TE[-1]
    tokens, experts = _rows(first_TE), first_TE.shape[-1]
    logits_TE = first_TE if len(terms_TE) == 1 else _like(first_TE, torch.float32)
    gate_TE = _like(first_TE, torch.float32)
    size = _sizes(tokens, experts)
    with _where(first_TE):
        _choose[size.pop("grid")](
            first_TE,
            second_TE,
            logits_TE,
            gate_TE,
            _flat(token_mask, gate_TE),
            gate_TE if assigned_E is None else assigned_E,
            tokens,
            first_TE.stride(0),
            TOP_K=top_k,
            RENORMALIZE=renormalize,
            SECOND=len(terms_TE) > 1,
            MASK=token_mask is not None,
            ASSIGNED=assigned_E is not None,
            **size,
        )
    return logits_TE, gate_TE


def gate_(hidden_TER: Tensor, gate_TE: Tensor, scaling: float) -> Tensor:
    """See ``plain``; hidden states and gates lie in memory without gaps."""
    tokens, experts, rank = hidden_TER.shape
    size = _sizes(tokens, experts, rank)
    with _where(hidden_TER):
        _gate[size.pop("grid")](hidden_TER, gate_TE.contiguous(), scaling, tokens, **size)
    increment_version(hidden_TER)
    return hidden_TER


def gated_gradients_(hidden_TER: Tensor, grad_TER: Tensor, gate_TE: Tensor, scaling: float) -> Tensor:
    """See ``plain``; the first two lie in memory without gaps."""
    tokens, experts, rank = hidden_TER.shape
    grad_gate = _like(gate_TE, torch.float32)
    size = _sizes(tokens, experts, rank)
    with _where(hidden_TER):
        _gated_gradients[size.pop("grid")](
            hidden_TER, grad_TER, gate_TE.contiguous(), grad_gate, scaling, tokens, **size
        )
    increment_version([hidden_TER, grad_TER])
    return grad_gate


def logits_gradient(
    grad_TE: Tensor, logits_TE: Tensor, gate_TE: Tensor, *, renormalize: bool, pull: Pull | None, dtype: torch.dtype
) -> Tensor:
    """See ``plain``; the balance loss, which is only told, is summed in no certain order."""
    out_TE = _like(gate_TE, dtype)
    pull_E = weighted_E = weight = mask = balance_E = None
    if pull is not None:
        pull_E, weighted_E, weight, mask, balance_E = pull
        if not isinstance(weight, Tensor):
            weighted_E, weight = weighted_E * weight, None
    size = _sizes(_rows(gate_TE), gate_TE.shape[-1])
    with _where(grad_TE):
        _logits_gradient[size.pop("grid")](
            grad_TE.contiguous(),
            logits_TE.contiguous(),
            gate_TE.contiguous(),
            *(out_TE if given is None else given for given in (pull_E, weighted_E, weight)),
            _flat(mask, out_TE),
            out_TE if balance_E is None else balance_E,
            out_TE,
            _rows(gate_TE),
            RENORMALIZE=renormalize,
            PULL=pull is not None,
            WEIGHT=weight is not None,
            MASK=mask is not None,
            BALANCE=balance_E is not None,
            **size,
        )
    return out_TE


def _where(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current GPU, which need not be the one that a layer lies on."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


def _like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty tensor of the same shape, without gaps whatever those of the other."""
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def _flat(mask: Tensor | None, instead: Tensor) -> Tensor:
    """A mask as a kernel reads it; any tensor in place of one that there is not, for it is never read then."""
    return instead if mask is None else mask.reshape(-1).contiguous()


def _sizes(tokens: int, experts: int, rank: int | None = None) -> dict[str, Any]:
    """Into how many programs a kernel goes, and what each has in hand; without ``rank`` that is all experts."""
    tile_E, tile_R = triton.next_power_of_2(experts), 1 if rank is None else triton.next_power_of_2(rank)
    sizes: dict[str, Any] = {"E": experts}
    if rank is not None:
        tile_E = max(1, min(tile_E, _IN_HAND // tile_R))
        sizes |= {"R": rank, "TILE_R": tile_R}
    tile_T = max(1, min(64, _IN_HAND // (tile_E * tile_R)))
    grid = (triton.cdiv(tokens, tile_T), triton.cdiv(experts, tile_E))
    return sizes | {"TILE_T": tile_T, "TILE_E": tile_E, "grid": grid}
