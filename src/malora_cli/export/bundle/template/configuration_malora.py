"""The configuration of a model whose linears carry routed low-rank experts."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import LlamaConfig


class MaloraLlamaConfig(LlamaConfig):
    """The base model's configuration, and what its experts are.

    Args:
        malora: The mixture. ``renormalize``: whether the kept gates of a token are divided by their sum. ``groups``:
            linears with experts of the same sizes, by name in the base model (``linears``); the number of ``experts``
            and how many a token takes (``top_k``), the ``rank`` of one, the ``subspace_rank`` of the projection that
            they share, null where each has its own, and the ``scaling`` of the update. ``blocks``: modules whose
            linears share a router, by name; elsewhere each has its own.
    """

    model_type = "malora_llama"
    # Experts are whole on every device, and the base model's plan would cut the linears that they stand on.
    base_model_tp_plan: ClassVar[dict[str, str] | None] = None

    malora: dict[str, Any] | None = None
