"""MoLA: MoLoRA with more experts in the upper layers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from malora_cli.adapters.methods.molora import Molora


class Mola(Molora):
    """MoLoRA with 2, 4, 6 and 8 experts in the quarters of the layers, from the input to the output.

    Source: Gao et al. 2024, "Higher Layers Need More LoRA Experts" (arXiv 2402.08562): MoLA-2468, the authors' best.
    """

    name: Literal["mola"] = Field(default="mola", description="MoLoRA with more experts in the upper layers")  # type: ignore[assignment]
    num_experts: PositiveInt | tuple[PositiveInt, ...] = Field(
        default=(2, 4, 6, 8),
        description="experts in each adapted linear; a list gives them for groups of consecutive layers",
    )


METHOD = Mola
