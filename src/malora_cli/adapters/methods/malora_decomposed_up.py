"""Ablation: MALoRA that decomposes the up-projections in place of the down-projections."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from malora_cli.adapters.methods.malora import Malora


class MaloraDecomposedUp(Malora):
    """MALoRA turned around: ``y = W0 x + (alpha / r) sum_t g_t(x) S_B Q_t A_t x``, with S_B shared.

    Says whether it is the down-projections that are worth sharing.

    Source: MALoRA (arXiv 2410.22782), Table 3 (decomposing B_t instead of A_t).
    """

    variant: ClassVar[dict[str, Any]] = {"subspace": "up"}

    name: Literal["malora-decomposed-up"] = Field(
        default="malora-decomposed-up", description="ablation: MALoRA with the up-projections decomposed"
    )  # type: ignore[assignment]


METHOD = MaloraDecomposedUp
