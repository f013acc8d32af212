"""MoLoRA: a mixture of independent LoRA experts, the paper's main rival."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from malora_cli.adapters.methods._mixture import MixtureSettings

if TYPE_CHECKING:
    from peft import PeftConfig


class Molora(MixtureSettings):
    """``y = W0 x + (alpha / r) sum_t g_t(x) B_t A_t x``.

    Source: Zadouri et al. 2023 (arXiv 2309.05444) in the form of MALoRA (arXiv 2410.22782), section 2.2 and Table 8.
    """

    name: Literal["molora"] = Field(default="molora", description="a mixture of independent LoRA experts")

    def peft_config(self, targets: list[str] | str) -> PeftConfig:
        """The configuration of the adapter on the linears with these names, or that match this expression."""
        from malora_cli import MoloraConfig

        return MoloraConfig(**self._arguments(targets))


METHOD = Molora
