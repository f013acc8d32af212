"""Ablation: MALoRA whose coefficients stay at their random start."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from malora_cli.adapters.methods.malora import Malora


class MaloraFrozenCoefficients(Malora):
    """MALoRA with the P_t frozen.

    Says how much of the gain comes from task-specific coefficients.

    Source: MALoRA (arXiv 2410.22782), Table 3 (frozen P_t).
    """

    variant: ClassVar[dict[str, Any]] = {"frozen": ["coefficient"]}

    name: Literal["malora-frozen-coefficients"] = Field(
        default="malora-frozen-coefficients", description="ablation: MALoRA with the P_t frozen"
    )  # type: ignore[assignment]


METHOD = MaloraFrozenCoefficients
