"""LoRA: PEFT's own, the baseline of the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from malora_cli.adapters.methods._base import AdapterSettings

if TYPE_CHECKING:
    from peft import PeftConfig


class Lora(AdapterSettings):
    """``y = W0 x + (alpha / r) B A x``.

    Source: Hu et al. 2021 (arXiv 2106.09685); rank, alpha and dropout of MALoRA (arXiv 2410.22782), Table 8.
    """

    name: Literal["lora"] = Field(default="lora", description="LoRA, as PEFT implements it")
    r: PositiveInt = Field(default=64, description="rank")
    lora_alpha: PositiveFloat = Field(default=128, description="the update is scaled by lora_alpha / r")
    lora_dropout: float = Field(default=0.05, ge=0, lt=1, description="dropout on the input of A")

    def peft_config(self, targets: list[str] | str) -> PeftConfig:
        """The configuration of the adapter on the linears with these names, or that match this expression."""
        from peft import LoraConfig

        return LoraConfig(**self._arguments(targets))


METHOD = Lora
