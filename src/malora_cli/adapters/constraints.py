"""What must hold between the numbers of a mixture. Without torch, so that a recipe can be checked in no time."""

from __future__ import annotations


def mixture_problems(*, r: int, num_experts: int, top_k: int, subspace_rank: int | None) -> list[str]:
    """Every constraint that the numbers of one mixture break, each as a sentence; empty when all hold.

    Args:
        r: Expert rank.
        num_experts: Experts in each adapted linear.
        top_k: Experts active for a token.
        subspace_rank: Rank d of the shared subspace; None for methods without one.
    """
    problems = []
    if top_k > num_experts:
        problems.append(
            f"top_k {top_k} is above num_experts {num_experts}: a token cannot take more experts than there are"
        )
    if subspace_rank is not None and subspace_rank < r:
        problems.append(
            f"subspace_rank {subspace_rank} is below r {r}: an expert reaches rank r only if the shared subspace has "
            f"at least that rank"
        )
    return problems
