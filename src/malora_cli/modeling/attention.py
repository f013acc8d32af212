"""Attention over the examples of a packed row, none of which may look at another.

PyTorch's kernels that take a mask compute the whole square of scores, and keep the mask for the backward pass. As the
lengths of the examples are known when the row is put together, no such mask is made: a GPU computes the diagonal blocks
in one call of flash attention where it can (`torch.nn.attention.varlen`), and everything else computes them one after
another. Only short examples on a GPU without that kernel share a mask, for there so many calls would take longer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED_SDPA = "packed_sdpa"
#: Implementations that are told where the examples of a row begin, and need not read it from the position ids.
_TOLD = (PACKED_SDPA, "flash_attention_2", "flash_attention_3")
#: Tokens of an example, in the mean of a row, above which a GPU computes blocks faster one by one than masked together.
_LONG = 256
#: What makes a mask more than causality within an example and a window: padding, and functions of a model's own.
_SPECIAL = ("attention_mask", "use_vmap", "allow_is_bidirectional_skip")

#: What PyTorch's own function knows, or refuses, and its attention for rows of examples would pass over.
_UNKNOWN = ("position_bias", "softcap", "s_aux")


@dataclass(frozen=True)
class PackedRow:
    """A row of examples that goes through a model.

    Args:
        lengths: Tokens of each example.
        by_example: Compute blocks one by one whatever they are and wherever.
    """

    lengths: tuple[int, ...]
    by_example: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of the row."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of its longest example."""
        return max(self.lengths)

    @property
    def starts(self) -> list[int]:
        """Where each example begins, and where the last one ends."""
        return [0, *accumulate(self.lengths)]

    def shares_mask(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether the whole row is computed at once, by one mask for all layers."""
        if self.by_example or not _on_cuda(device) or self.tokens > _LONG * len(self.lengths):
            return False
        return dtype not in (torch.bfloat16, torch.float16) or _varlen_attention() is None


def _on_cuda(device: torch.device) -> bool:
    return device.type == "cuda"


#: The row that is going through a model: what makes the masks is told nothing else of it.
_ROW: ContextVar[PackedRow | None] = ContextVar("row", default=None)


@contextmanager
def packed(
    model: PreTrainedModel, lengths: Sequence[int], device: torch.device, *, by_example: bool = False
) -> Iterator[dict[str, Any]]:
    """Within the block, a row of examples may go through a model.

    Args:
        model: The base model.
        lengths: Tokens of each example; none for a row that comes with a mask of its own.
        device: Where the row lies.
        by_example: Compute no mask for the whole row, however short its examples are.

    Yields:
        What the model is to be given besides its usual inputs, by transformers' names where it has one.
    """
    if not lengths or not _is_told(model):
        yield {}
        return
    row = PackedRow(tuple(lengths), by_example)
    # Not waited for: the row before may still be computed.
    starts = torch.tensor(row.starts, dtype=torch.int32).to(device, non_blocking=True)
    told = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": row.longest, "max_length_k": row.longest}
    if not attends_within_examples(model):
        yield told
        return
    before = _ROW.set(row)
    try:
        yield {**told, "packed_row": row}
    finally:
        _ROW.reset(before)


def _is_told(model: PreTrainedModel) -> bool:
    """Whether a model's attention wants to know the lengths, and its layers hand on what they do not know."""
    parameters = inspect.signature(model.forward).parameters.values()
    return model.config._attn_implementation in _TOLD and any(p.kind is p.VAR_KEYWORD for p in parameters)


def attends_within_examples(model: PreTrainedModel) -> bool:
    """Whether `attend_within_examples` has taken effect."""
    return model.config._attn_implementation == PACKED_SDPA


def attend_within_examples(model: PreTrainedModel) -> None:
    """Let a model that attends by ``sdpa`` do so within the examples of a row."""
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        model.set_attn_implementation(PACKED_SDPA)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_row: PackedRow | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' function for ``sdpa``, which computes every block.

    Args:
        module: The attention layer.
        query: Shape ``(batch, heads, T, width)``.
        key: As ``query``, with as many heads as the layer has of them.
        value: As ``key``.
        attention_mask: As `packed_mask` makes it.
        packed_row: The examples of the row; None for padded batches and what has a past.
        kwargs: What goes to PyTorch's function, and ``cu_seq_lens_q``, shape ``(examples + 1,)``.

    Returns:
        Output, shape ``(batch, T, heads, width)``, and no weights.
    """
    row = packed_row
    if row is None or not query.shape[2] == key.shape[2] == row.tokens:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    query, key, value = (_autocast(x) for x in (query, key, value))
    whole = attention_mask is not None and attention_mask.shape[-1] > row.longest
    if not whole and (window := _window(attention_mask, kwargs)) and _has_varlen(module, query, key, value, kwargs):
        return _at_once(query, key, value, row, window, kwargs), None
    if whole and _on_cuda(query.device):
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    lengths = list(row.lengths)
    blocks = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), row.starts, strict=False)
    outputs = []
    for q, k, v, start in blocks:
        end, left = start + q.shape[2], start if whole else 0
        mask = None if attention_mask is None else attention_mask[..., start:end, left : left + q.shape[2]]
        outputs.append(sdpa_attention_forward(module, q, k, v, mask, **kwargs)[0])
    return torch.cat(outputs, 1), None


def _autocast(x: Tensor) -> Tensor:
    """As autocast hands it to PyTorch's own attention; to the other kernel it would leave it as it is."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _window(mask: Tensor | None, kwargs: dict[str, Any]) -> int | None:
    """Tokens that each sees up to itself, -1 for all of its example; None where there is more to a mask than that."""
    return -1 if mask is None else kwargs.get("sliding_window")


def _has_varlen(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether flash attention takes such a layer here; it goes by number format, width and GPU."""
    is_causal = kwargs.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    unknown = kwargs.get("dropout") or any(kwargs.get(name) is not None for name in _UNKNOWN)
    if unknown or not is_causal or query.shape[-1] % 8:
        return False
    if not _on_cuda(query.device) or _varlen_attention() is None:
        return False
    return can_use_flash_attention(SDPAParams(query, key, value, None, 0.0, True, query.shape[1] != key.shape[1]))


def _at_once(query: Tensor, key: Tensor, value: Tensor, row: PackedRow, window: int, kwargs: dict[str, Any]) -> Tensor:
    """All blocks in one call; shape ``(1, T, heads, width)``."""
    attend = _varlen_attention()
    assert attend is not None
    starts = kwargs["cu_seq_lens_q"]
    return attend(
        *(x[0].transpose(0, 1) for x in (query, key, value)),
        *(starts, starts, row.longest, row.longest),
        scale=kwargs.get("scaling"),
        window_size=(window if window < 0 else window - 1, 0),  # besides the token itself
        enable_gqa=query.shape[1] != key.shape[1],
    ).unsqueeze(0)


@cache
def _varlen_attention() -> Callable[..., Any] | None:
    """PyTorch's attention for rows of examples; None where it has none yet that knows windows and shared heads.

    GPUs before Ampere lack flash attention.
    """
    if torch.cuda.get_device_capability() < (8, 0):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn  # takes seconds to import, and is for GPUs only
    except ImportError:
        return None
    return varlen_attn if {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys() else None


def packed_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *sizes: Any,
    mask_function: Callable[..., Tensor],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    local_size: int | None = None,
    **settings: Any,
) -> Tensor | None:
    """Transformers' mask for ``sdpa``, but of a packed row only what its examples see beside causality.

    Args:
        batch_size: Rows.
        q_length: Tokens that ask.
        kv_length: Tokens that are seen.
        sizes: As transformers hands them on.
        mask_function: Whether a token sees another, by the indices of batch, head and both tokens.
        device: Where the mask is wanted.
        dtype: Number format of the hidden states.
        local_size: Size of the window or of the chunks in which tokens see others; None is all.
        settings: As transformers hands them on.

    Returns:
        None where plain causality within examples is all there is to say; shape ``(1, 1, T, longest)``, where column n
        stands for token n of the asking token's example; or ``(batch, 1, T, T)`` for all else. Where a backward pass is
        to come, that of a single row is of numbers that are added to scores.
    """
    if torch.is_autocast_enabled(device.type):  # which would copy a mask of another format
        dtype = torch.get_autocast_dtype(device.type)
    row, sizes = _ROW.get(), (batch_size, q_length, kv_length, *sizes)
    special = any(settings.get(name) is not None and settings[name] is not False for name in _SPECIAL)
    if row is None or special or sizes[:3] != (1, row.tokens, row.tokens) or row.shares_mask(dtype, device):
        settings |= {"mask_function": mask_function, "device": device, "dtype": dtype, "local_size": local_size}
        mask = sdpa_mask(*sizes, **settings)
    elif local_size is None or local_size >= row.longest:
        return None
    else:
        mask = _band(row, mask_function, device)
    return mask if mask is None or batch_size > 1 or not torch.is_grad_enabled() else _scores(mask, dtype)


def _band(row: PackedRow, sees: Callable[..., Tensor], device: torch.device) -> Tensor:
    """What tokens see of the longest example's length from the beginning of their own on."""
    lengths, small = torch.tensor(row.lengths), torch.int32  # there is a number for every pair of tokens
    start_T = torch.tensor(row.starts[:-1], dtype=small).repeat_interleave(lengths).to(device, non_blocking=True)
    query_T = torch.arange(row.tokens, dtype=small, device=device)
    key_TN = start_T[:, None] + torch.arange(row.longest, dtype=small, device=device)
    first = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=device)  # the only row, and any head
    # What lies behind the row's end is cut off with the rest behind an example's end.
    return sees(first, first, query_T[None, None, :, None], key_TN.clamp(max=row.tokens - 1)[None, None])


def _scores(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers, which layers share: of any other each would make a copy and keep it."""
    *others, seen = mask.shape
    # Kernels for GPUs copy masks whose rows do not begin at a multiple of eight numbers.
    scores = mask.new_zeros(*others, -(-seen // 8) * 8, dtype=dtype)[..., :seen]
    return scores.masked_fill_(~mask, -torch.inf)


AttentionInterface.register(PACKED_SDPA, packed_attention)
AttentionMaskInterface.register(PACKED_SDPA, packed_mask)
