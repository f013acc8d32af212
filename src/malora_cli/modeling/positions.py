"""Positions that are turned by an angle that depends on the longest one in the row, which packed rows cannot have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

from malora_cli.errors import ModelError


def check_positions(config: PreTrainedConfig, max_length: int) -> None:
    """Make sure that no row of tokens is so long that it changes what others, packed behind it, are to the model.

    Up to the length that the model was first trained on these kinds of RoPE turn all rows alike. Beyond it they go by
    the longest position of all that are computed together, dynamic ones by the longest before as well.

    Args:
        config: The base model's.
        max_length: Tokens of the longest row.

    Raises:
        ModelError: Rows may be longer.
    """
    text = config.get_text_config()
    for rope in _ropes(getattr(text, "rope_parameters", None) or {}):
        kind = str(rope.get("rope_type", ""))
        if kind == "longrope":
            original = int(rope.get("original_max_position_embeddings") or text.max_position_embeddings)
        elif "dynamic" in kind:
            original = int(text.max_position_embeddings)
        else:
            continue
        if max_length > original:
            raise ModelError(
                f"it is {max_length:,}, and beyond {original:,} tokens this model's positions ({kind} RoPE) depend on "
                "the longest row of a batch",
                where="train.max_length",
                fix=f"Set it to at most {original}.",
            )


def _ropes(parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings of one kind of layer, or of each."""
    if "rope_type" in parameters:
        yield parameters
    else:
        yield from (rope for rope in parameters.values() if isinstance(rope, dict))
