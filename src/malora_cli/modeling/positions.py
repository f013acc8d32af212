"""How long a text may be for a model: where its positions end, or depend on others that are computed with it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import chain
from typing import Any

from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel

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
    for kind, original in _depending(config):
        if max_length > original:
            raise ModelError(
                f"it is {max_length:,}, and beyond {original:,} tokens this model's positions ({kind} RoPE) depend on "
                "the longest row of a batch",
                where="train.max_length",
                fix=f"Set it to at most {original}.",
            )


def check_rows(model: PreTrainedModel, longest: int) -> None:
    """Make sure that a model has positions for the longest row there is, and say where it was trained on shorter ones.

    Args:
        model: The base model.
        longest: Tokens of the row.

    Raises:
        ModelError: It has none.
    """
    most, trained = most_positions(model), getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and longest > most:
        raise ModelError(
            f"the longest row has {longest:,} tokens, and this model has positions for {most:,}",
            where="train.max_length",
            fix=f"Set it to at most {most}; a task's too_long says what becomes of longer rows.",
        )
    if trained is not None and longest > trained:
        warnings.warn(
            f"the longest row has {longest:,} tokens, and the model was made for {trained:,} (max_position_embeddings)",
            stacklevel=2,
        )


def most_positions(model: PreTrainedModel | PeftModel) -> int | None:
    """Tokens of the longest text that a model can be given, and answer, by itself as in a batch; None is any.

    A table of positions ends, as GPT-2's does. RoPE does not, but for the kinds that go by the longest row.
    """
    config = model.config.get_text_config()
    ends = [original for _, original in _depending(config)]
    most = getattr(config, "max_position_embeddings", None)
    named = chain(model.named_parameters(), model.named_buffers())
    # OPT and those after it leave the first two rows of the table empty.
    if most is not None and any(
        len(table.shape) == 2 and table.shape[0] in (most, most + 2) and ("pos" in name or "wpe" in name)
        for name, table in named
    ):
        ends.append(int(most))
    return min(ends, default=None)


def _depending(config: PreTrainedConfig) -> Iterator[tuple[str, int]]:
    """The kinds of RoPE that go by the longest row, and the length from which on they do."""
    text = config.get_text_config()
    for rope in _ropes(getattr(text, "rope_parameters", None) or {}):
        kind = str(rope.get("rope_type", ""))
        if kind == "longrope":
            yield kind, int(rope.get("original_max_position_embeddings") or text.max_position_embeddings)
        elif "dynamic" in kind:
            yield kind, int(text.max_position_embeddings)


def _ropes(parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings of one kind of layer, or of each."""
    if "rope_type" in parameters:
        yield parameters
    else:
        yield from (rope for rope in parameters.values() if isinstance(rope, dict))
