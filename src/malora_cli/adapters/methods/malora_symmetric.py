"""Ablation: MALoRA without the rank moved from the subspace to the experts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from malora_cli.adapters.methods.malora import Malora


class MaloraSymmetric(Malora):
    """MALoRA with r = 8 and d = r N = 64.

    Says how much of the gain comes from the asymmetry.

    Source: MALoRA (arXiv 2410.22782), Table 3 (without asymmetry).
    """

    name: Literal["malora-symmetric"] = Field(
        default="malora-symmetric", description="ablation: MALoRA without asymmetry"
    )  # type: ignore[assignment]
    r: PositiveInt = Field(default=8, description="rank of an expert")
    lora_alpha: PositiveFloat = Field(default=16, description="the update is scaled by lora_alpha / r")
    subspace_rank: PositiveInt = Field(default=64, description="rank d of the shared subspace, at least r")


METHOD = MaloraSymmetric
