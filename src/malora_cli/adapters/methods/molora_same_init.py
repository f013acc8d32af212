"""Ablation: MoLoRA whose experts start from one and the same A."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from malora_cli.adapters.methods.molora import Molora


class MoloraSameInit(Molora):
    """MoLoRA of rank 12 with ``A_t = A_0`` at the start.

    Says how much of a gain comes from experts that start alike, without sharing anything.

    Source: MALoRA (arXiv 2410.22782), Table 3 (same A_t at initialisation).
    """

    variant: ClassVar[dict[str, Any]] = {"same_init": True}

    name: Literal["molora-same-init"] = Field(
        default="molora-same-init", description="ablation: MoLoRA whose experts start from one A"
    )  # type: ignore[assignment]
    r: PositiveInt = Field(default=12, description="rank of an expert")
    lora_alpha: PositiveFloat = Field(default=24, description="the update is scaled by lora_alpha / r")


METHOD = MoloraSameInit
