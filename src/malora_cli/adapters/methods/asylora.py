"""AsyLoRA: LoRA of twice the rank whose down-projection stays at its random start."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from malora_cli.adapters.methods.lora import Lora


class AsyLora(Lora):
    """LoRA that trains B alone.

    ``y = W0 x + (alpha / r) B A x`` with A frozen.

    Source: Zhu et al. 2024 (arXiv 2402.16842); rank and alpha of MALoRA (arXiv 2410.22782), Table 8.
    """

    frozen: ClassVar[tuple[str, ...]] = ("lora_A",)

    name: Literal["asylora"] = Field(default="asylora", description="LoRA of twice the rank with A frozen")  # type: ignore[assignment]
    r: PositiveInt = Field(default=128, description="rank")
    lora_alpha: PositiveFloat = Field(default=256, description="the update is scaled by lora_alpha / r")


METHOD = AsyLora
