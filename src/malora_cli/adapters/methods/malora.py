"""MALoRA: experts share a down-projection and differ in coefficients and up-projections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from malora_cli.adapters.constraints import subspace_problems
from malora_cli.adapters.methods._mixture import MixtureSettings

if TYPE_CHECKING:
    from peft import PeftConfig


class Malora(MixtureSettings):
    """``y = W0 x + (alpha / r) sum_t g_t(x) B_t P_t S_A x``.

    Source: Wang et al., Findings of NAACL 2025 (arXiv 2410.22782), Eq. 4-10; the inter-domain values of Table 8.
    """

    name: Literal["malora"] = Field(default="malora", description="mixture of asymmetric low-rank adaptation")
    r: PositiveInt = Field(default=12, description="expanded rank r' of an expert")
    lora_alpha: PositiveFloat = Field(default=24, description="the update is scaled by lora_alpha / r")
    subspace_rank: PositiveInt = Field(default=32, description="rank d of the shared subspace, at least r")
    beta: PositiveFloat = Field(
        default=1.0, description="balance between learning what is shared (~ 1/beta) and what is not (~ beta)"
    )

    def _further_problems(self) -> list[str]:
        return subspace_problems(r=self.r, num_experts=self.num_experts, subspace_rank=self.subspace_rank)

    def peft_config(self, targets: list[str] | str) -> PeftConfig:
        """The configuration of the adapter on the linears with these names, or that match this expression."""
        from malora_cli import MaloraConfig

        return MaloraConfig(**self._arguments(targets))


METHOD = Malora
