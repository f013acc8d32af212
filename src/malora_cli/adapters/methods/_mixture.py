"""Settings that every mixture of LoRA experts has."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from malora_cli.adapters.constraints import mixture_problems
from malora_cli.adapters.methods._base import AdapterSettings


class MixtureSettings(AdapterSettings):
    """A router for each adapted linear and ``num_experts`` low-rank experts behind it."""

    r: PositiveInt = Field(default=8, description="rank of an expert")
    num_experts: PositiveInt | tuple[PositiveInt, ...] = Field(
        default=8, description="experts in each adapted linear; a list gives them for groups of consecutive layers"
    )
    top_k: PositiveInt = Field(default=2, description="experts active for a token")
    lora_alpha: PositiveFloat = Field(default=16, description="the update is scaled by lora_alpha / r")
    lora_dropout: float = Field(default=0.05, ge=0, lt=1, description="dropout on the input of the down-projection")
    balance_factor: NonNegativeFloat = Field(default=0.01, description="weight of the load-balancing loss")
    router: Literal["linear", "block"] = Field(
        default="linear",
        description="what has a router of its own: every linear, or every block of linears that stand in one module",
    )
    renormalize: bool = Field(
        default=True, description="divide the kept gates by their sum; false is Eq. 4 of the paper read literally"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [
            *mixture_problems(num_experts=self.num_experts, top_k=self.top_k, renormalize=self.renormalize),
            *self._further_problems(),
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _further_problems(self) -> list[str]:
        """What a method's own numbers break, each as a sentence."""
        return []
