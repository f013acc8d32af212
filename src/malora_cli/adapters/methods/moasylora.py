"""MoAsyLoRA: MoLoRA of twice the rank whose down-projections stay at their random start."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from malora_cli.adapters.methods.molora import Molora


class MoAsyLora(Molora):
    """A mixture of LoRA experts that trains their B_t alone.

    ``y = W0 x + (alpha / r) sum_t g_t(x) B_t A_t x`` with the A_t frozen.

    Source: MALoRA (arXiv 2410.22782), Table 1 (MoAsyLoRA).
    """

    variant: ClassVar[dict[str, Any]] = {"frozen": ["down"]}

    name: Literal["moasylora"] = Field(default="moasylora", description="MoLoRA of twice the rank with the A_t frozen")  # type: ignore[assignment]
    r: PositiveInt = Field(default=16, description="rank of an expert")
    lora_alpha: PositiveFloat = Field(default=32, description="the update is scaled by lora_alpha / r")


METHOD = MoAsyLora
