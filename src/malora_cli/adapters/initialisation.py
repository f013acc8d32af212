"""Initial values of the experts (MALoRA, Eq. 8-10). Everything is drawn from torch's global generator, on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class Split(NamedTuple):
    """S_A, shape ``(S, I)``, and the P_t, shape ``(E, R, S)``; float32."""

    down_SI: Tensor
    coefficient_ERS: Tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """LAPACK's threads cost far more than they bring on matrices this small, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def kaiming_uniform(*shape: int) -> Tensor:
    """LoRA's own draw for A, Kaiming-uniform with a = sqrt(5): U(-1/sqrt(n), 1/sqrt(n)) over n in_features."""
    bound = 1.0 / math.sqrt(shape[-1])
    return torch.empty(*shape, dtype=torch.float32, device="cpu").uniform_(-bound, bound)


def shared_subspace(in_features: int, *, num_experts: int, r: int, subspace_rank: int, beta: float) -> Split:
    """Split one draw ``K_t = U_t Sigma_t V_t`` for each expert into a shared S_A and its own P_t.

    ``P_t = (U_t Sigma_t)[:r] / beta`` and ``S_A = beta V_0``, so that expert 0 starts at ``P_0 S_A = K_0[:r]``: LoRA's
    own start. The product does not depend on beta; the pace at which its two factors learn does.

    Args:
        in_features: n.
        num_experts: N.
        r: Expert rank r'; the first r' rows are kept.
        subspace_rank: d, the rows of each K_t. Where ``d > n`` the subspace is all of the input space: the rows of
            S_A beyond n are zero, as are the columns of P_t that meet them.
        beta: Balance between general and task-specific learning.

    Source: MALoRA (arXiv 2410.22782), Eq. 8-10.
    """
    draw_ESI = kaiming_uniform(num_experts, subspace_rank, in_features)
    with one_thread():
        u, sigma, v = torch.linalg.svd(draw_ESI, full_matrices=False)
    rank = sigma.shape[-1]
    down_SI = torch.zeros(subspace_rank, in_features)
    down_SI[:rank] = beta * v[0]
    coefficient_ERS = torch.zeros(num_experts, r, subspace_rank)
    coefficient_ERS[..., :rank] = (u * sigma.unsqueeze(-2))[:, :r] / beta
    return Split(down_SI, coefficient_ERS)


def own_subspaces(in_features: int, *, num_experts: int, r: int, subspace_rank: int, beta: float) -> Split:
    """The same split with a subspace for each expert, of a rank that may be below the experts' own.

    One draw ``K_t``, shape ``(max(r, subspace_rank), in_features)``, for each expert; ``S_t = beta V_t`` and ``P_t =
    (U_t Sigma_t)[:r] / beta``, both cut to the ``subspace_rank`` largest singular values: of that rank, the nearest to
    LoRA's own start. With ``subspace_rank >= r`` and nothing cut, ``P_t S_t`` are the first rows of ``K_t``.

    Returns:
        S_t stacked, shape ``(num_experts * subspace_rank, in_features)``, and P_t, shape ``(E, R, subspace_rank)``.
    """
    draw_EKI = kaiming_uniform(num_experts, max(r, subspace_rank), in_features)
    with one_thread():
        u, sigma, v = torch.linalg.svd(draw_EKI, full_matrices=False)
    rank = min(subspace_rank, sigma.shape[-1])
    down_ESI = torch.zeros(num_experts, subspace_rank, in_features)
    down_ESI[:, :rank] = beta * v[:, :rank]
    coefficient_ERS = torch.zeros(num_experts, r, subspace_rank)
    coefficient_ERS[..., :rank] = (u * sigma.unsqueeze(-2))[:, :r, :rank] / beta
    return Split(down_ESI.flatten(0, 1), coefficient_ERS)
