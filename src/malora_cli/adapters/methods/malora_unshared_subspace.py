"""Ablation: MALoRA in which every expert has a subspace of its own."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from malora_cli.adapters.constraints import subspace_problems
from malora_cli.adapters.methods.malora import Malora


class MaloraUnsharedSubspace(Malora):
    """MALoRA with ``A_t = P_t S_t``, each S_t of rank d / N, so that no expert's update has a higher rank.

    Says how much of the gain comes from sharing the subspace.

    Source: MALoRA (arXiv 2410.22782), Table 3 (without shared S_A).
    """

    variant: ClassVar[dict[str, Any]] = {"subspace": "own"}

    name: Literal["malora-unshared-subspace"] = Field(
        default="malora-unshared-subspace", description="ablation: MALoRA with a subspace for each expert"
    )  # type: ignore[assignment]

    def _further_problems(self) -> list[str]:
        return subspace_problems(r=self.r, num_experts=self.num_experts, subspace_rank=self.subspace_rank, own=True)


METHOD = MaloraUnsharedSubspace
