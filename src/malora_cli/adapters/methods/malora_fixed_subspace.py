"""Ablation: MALoRA whose shared subspace stays at its random start."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from malora_cli.adapters.methods.malora import Malora


class MaloraFixedSubspace(Malora):
    """MALoRA with S_A frozen, at expert rank 16.

    Says how much of the gain comes from learning what the tasks share.

    Source: MALoRA (arXiv 2410.22782), Table 3 (fixed S_A).
    """

    variant: ClassVar[dict[str, Any]] = {"frozen": ["down"]}

    name: Literal["malora-fixed-subspace"] = Field(
        default="malora-fixed-subspace", description="ablation: MALoRA with S_A frozen"
    )  # type: ignore[assignment]
    r: PositiveInt = Field(default=16, description="expanded rank r' of an expert")
    lora_alpha: PositiveFloat = Field(default=32, description="the update is scaled by lora_alpha / r")


METHOD = MaloraFixedSubspace
