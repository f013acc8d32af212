"""Attention over the examples of a packed row, one after another.

Behind one another in one row, examples may not look at each other, and PyTorch's kernels for CPU compute the whole
square of scores and mask all but its diagonal blocks. Here each block is computed by itself. Kernels for GPUs are given
the whole row: there the calls would cost more than the masked scores. The mask is made what kernels want it to be once
for all layers, or each would make a copy of its own and keep it for the backward pass.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED_SDPA = "packed_sdpa"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' function for ``sdpa``, which computes every block; the mask goes on to say what it may see.

    Args:
        module: The attention layer.
        query: Shape ``(batch, heads, T, width)``.
        key: As ``query``, with as many heads as the layer has of them.
        value: As ``key``.
        attention_mask: Shape ``(batch, 1, T, T)``; that of a packed row hides all other examples.
        position_ids: Shape ``(batch, T)``; a new example begins where they are 0.
        kwargs: What goes to PyTorch's function.

    Returns:
        Output, shape ``(batch, T, heads, width)``, and no weights.
    """
    lengths = [] if position_ids is None else _lengths(position_ids, query, key)
    if attention_mask is None or len(lengths) < 2:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    ends = list(accumulate(lengths))
    blocks = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), lengths, ends, strict=True)
    outputs = [
        sdpa_attention_forward(module, q, k, v, attention_mask[..., end - length : end, end - length : end], **kwargs)
        for q, k, v, length, end in blocks
    ]
    return torch.cat([output for output, _ in outputs], 1), None


def _lengths(position_ids: Tensor, query: Tensor, key: Tensor) -> list[int]:
    """Tokens of each example of a row that stands alone and has no past; none of any other."""
    tokens = query.shape[2]
    if query.device.type != "cpu" or key.shape[2] != tokens or position_ids.shape != (1, tokens):
        return []
    starts = (position_ids[0, 1:] == 0).nonzero().flatten() + 1
    bounds = torch.cat([starts.new_zeros(1), starts, starts.new_tensor([tokens])])
    return bounds.diff().tolist()


def shared_mask(*sizes: Any, dtype: torch.dtype = torch.float32, **settings: Any) -> Tensor | None:
    """Transformers' mask for ``sdpa``, as numbers that are added to scores where a backward pass is to come.

    Args:
        sizes: As transformers hands them on.
        dtype: Number format of the hidden states.
        settings: As transformers hands them on.

    Returns:
        Shape ``(batch, 1, T, T)``; None where plain causality is all there is to say.
    """
    mask = sdpa_mask(*sizes, **settings)
    if mask is None or mask.shape[0] > 1 or not torch.is_grad_enabled():
        return mask
    device = mask.device.type
    if torch.is_autocast_enabled(device):  # which would copy it, too
        dtype = torch.get_autocast_dtype(device)
    *others, tokens = mask.shape
    # Kernels for GPUs copy masks whose rows do not begin at a multiple of eight numbers.
    scores = mask.new_zeros(*others, -(-tokens // 8) * 8, dtype=dtype)[..., :tokens]
    return scores.masked_fill_(~mask, -torch.inf)


def attend_within_examples(model: PreTrainedModel) -> None:
    """Let a model that attends by ``sdpa`` do so an example at a time, or on a GPU by one mask for all layers."""
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        model.set_attn_implementation(PACKED_SDPA)


AttentionInterface.register(PACKED_SDPA, packed_attention)
AttentionMaskInterface.register(PACKED_SDPA, shared_mask)
