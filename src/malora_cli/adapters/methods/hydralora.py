"""HydraLoRA: one down-projection for all experts, an up-projection for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from malora_cli.adapters.methods._mixture import MixtureSettings

if TYPE_CHECKING:
    from peft import PeftConfig


class HydraLora(MixtureSettings):
    """``y = W0 x + (alpha / r) sum_t g_t(x) B_t A x``, with the whole softmax for gates and no balance loss.

    Source: Tian et al., NeurIPS 2024 (arXiv 2404.19245). The authors train 4 experts of rank 4; rank 24 spends about
    what the other methods spend, and alpha is twice the rank as in all columns of MALoRA's Table 8.
    """

    name: Literal["hydralora"] = Field(default="hydralora", description="one A for all experts, a B for each")
    r: PositiveInt = Field(default=24, description="rank of A and of an expert")
    num_experts: PositiveInt = Field(default=4, description="experts in each adapted linear")
    top_k: PositiveInt = Field(default=4, description="experts active for a token")
    lora_alpha: PositiveFloat = Field(default=48, description="the update is scaled by lora_alpha / r")
    balance_factor: NonNegativeFloat = Field(default=0.0, description="weight of the load-balancing loss")

    def peft_config(self, targets: list[str] | str) -> PeftConfig:
        """The configuration of the adapter on the linears with these names, or that match this expression."""
        from malora_cli import HydraLoraConfig

        return HydraLoraConfig(**self._arguments(targets))


METHOD = HydraLora
