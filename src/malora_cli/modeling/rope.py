"""Where a configuration says how positions are turned (RoPE)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_plain_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``config.json`` that also has RoPE under the names that it had before transformers 5.

    Transformers 5 writes ``rope_parameters`` alone. Programs that know ``rope_theta`` and ``rope_scaling`` only, as
    mlx-lm 0.32, take 10,000 in their place without a word. Transformers reads either, and the two say the same.

    Args:
        config: What the file says. Parameters by type of layer have no older name, and stay as they are.
    """
    rope = config.get("rope_parameters") or {}
    if "rope_theta" not in rope:
        return dict(config)
    old = {"rope_theta": rope["rope_theta"]}
    if rope.get("rope_type", "default") != "default":
        old["rope_scaling"] = rope
    return {**old, **config}
