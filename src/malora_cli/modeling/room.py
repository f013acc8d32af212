"""How many tokens a GPU's memory holds beside a model, found by reading a few."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from malora_cli.modeling.modes import as_trained

#: Tokens of the two readings, in rows of so many; what they differ by is what a token takes.
_READ, _ROW = (512, 2048), 64
#: Of the free memory. Keys and values of new rows are there twice for a while, and what is freed leaves gaps.
_SHARE = 0.4


def tokens_held(model: PreTrainedModel | PeftModel) -> int | None:
    """Tokens that can go through a model at once, a power of two so that it is the same the next time; None is any.

    Args:
        model: On a GPU; of other devices nobody can tell.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return None
    few, many = (_taken(model, tokens, device) for tokens in _READ)
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    held = int(_SHARE * free * (_READ[1] - _READ[0]) / max(many - few, 1))
    return 1 << (max(held, 1).bit_length() - 1)


@torch.no_grad()
def _taken(model: PreTrainedModel | PeftModel, tokens: int, device: torch.device) -> int:
    """Bytes that reading so many tokens takes at its peak, their keys and values included."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    ids = torch.zeros(tokens // _ROW, _ROW, dtype=torch.int64, device=device)
    last = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
    with as_trained(model):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, **last)
    return torch.cuda.max_memory_allocated(device) - before
