"""MALoRA-Small: MALoRA without the expanded rank, for fewer parameters than MoLoRA at the same quality."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from malora_cli.adapters.methods.malora import Malora


class MaloraSmall(Malora):
    """MALoRA with r' = 8 and d = 22.

    Source: MALoRA (arXiv 2410.22782), Table 1 (MALoRA-Small).
    """

    name: Literal["malora-small"] = Field(default="malora-small", description="MALoRA with fewer parameters")  # type: ignore[assignment]
    r: PositiveInt = Field(default=8, description="rank of an expert")
    lora_alpha: PositiveFloat = Field(default=16, description="the update is scaled by lora_alpha / r")
    subspace_rank: PositiveInt = Field(default=22, description="rank d of the shared subspace, at least r")


METHOD = MaloraSmall
