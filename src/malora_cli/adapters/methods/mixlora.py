"""MixLoRA-style: MoLoRA with one router for the linears of a block."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from malora_cli.adapters.methods.molora import Molora


class MixLora(Molora):
    """MoLoRA in which q, k and v share one router, and so do gate, up and down.

    ``y = W0 x + (alpha / r) sum_t g_t(x') B_t A_t x`` in every linear of a block, where x' is the input of its first
    linear. MixLoRA itself sums over whole feed-forward blocks, each with its own activation between the two
    layers, and gives attention a plain LoRA; what is taken from it here is the routing.

    Source: Li et al. 2024 (arXiv 2404.15159); the authors' numbers, which are MoLoRA's here.
    """

    name: Literal["mixlora"] = Field(default="mixlora", description="MoLoRA with a router for each block of linears")  # type: ignore[assignment]
    router: Literal["linear", "block"] = Field(
        default="block",
        description="what has a router of its own: every linear, or every block of linears that stand in one module",
    )


METHOD = MixLora
