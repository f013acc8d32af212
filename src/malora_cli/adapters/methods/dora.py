"""DoRA: LoRA with the magnitude of every output learned apart from its direction; PEFT's own."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from malora_cli.adapters.methods.lora import Lora


class Dora(Lora):
    """``y = m * (W0 + (alpha / r) B A) x / ||W0 + (alpha / r) B A||``, with a learned magnitude m for each output.

    Source: Liu et al. 2024 (arXiv 2402.09353); rank, alpha and dropout of MALoRA (arXiv 2410.22782), Table 8.
    """

    variant: ClassVar[dict[str, Any]] = {"use_dora": True}

    name: Literal["dora"] = Field(
        default="dora", description="LoRA with magnitudes apart from directions, as PEFT implements it"
    )  # type: ignore[assignment]


METHOD = Dora
