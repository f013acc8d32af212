"""rsLoRA: LoRA whose scaling does not fade as the rank grows; PEFT's own."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from malora_cli.adapters.methods.lora import Lora


class RsLora(Lora):
    """``y = W0 x + (alpha / sqrt(r)) B A x``.

    Source: Kalajdzievski 2023 (arXiv 2312.03732). Alpha is 16, at which rank 64 is scaled by 2, as LoRA of Table 8 is.
    """

    variant: ClassVar[dict[str, Any]] = {"use_rslora": True}

    name: Literal["rslora"] = Field(
        default="rslora", description="LoRA scaled by the square root of the rank, as PEFT implements it"
    )  # type: ignore[assignment]
    lora_alpha: PositiveFloat = Field(default=16, description="the update is scaled by lora_alpha / sqrt(r)")


METHOD = RsLora
