"""What must hold between the numbers of a mixture. Without torch, so that a recipe can be checked in no time."""

from __future__ import annotations

from collections.abc import Sequence


def mixture_problems(*, num_experts: int | Sequence[int], top_k: int, renormalize: bool) -> list[str]:
    """Every constraint that the numbers of one mixture break, each as a sentence; empty when all hold.

    Args:
        num_experts: Experts in each adapted linear, or in those of each group of layers.
        top_k: Experts active for a token.
        renormalize: Whether the kept gates are divided by their sum.
    """
    experts = [num_experts] if isinstance(num_experts, int) else list(num_experts)
    problems = []
    if top_k > min(experts):
        problems.append(
            f"top_k {top_k} is above num_experts {min(experts)}: a token cannot take more experts than there are"
        )
    elif top_k == 1 and max(experts) > 1 and renormalize:
        problems.append(
            "top_k 1 with renormalize leaves the router without a gradient from the tasks, for its one gate is "
            "always 1: set renormalize to false"
        )
    return problems


def subspace_problems(*, r: int, num_experts: int | Sequence[int], subspace_rank: int, own: bool = False) -> list[str]:
    """Every constraint that a MALoRA's subspace breaks, each as a sentence; empty when all hold.

    Args:
        r: Expert rank.
        num_experts: Experts in each adapted linear, or in those of each group of layers.
        subspace_rank: Rank d of the shared subspace, or of the experts' own ones together.
        own: Whether every expert has a subspace of its own; then its rank is meant to be below ``r``.
    """
    if own:
        experts = [num_experts] if isinstance(num_experts, int) else list(num_experts)
        return [
            f"subspace_rank {subspace_rank} cannot be divided among num_experts {count}"
            for count in experts
            if subspace_rank % count
        ]
    if subspace_rank < r:
        return [
            f"subspace_rank {subspace_rank} is below r {r}: an expert reaches rank r only if the shared subspace has "
            f"at least that rank"
        ]
    return []
