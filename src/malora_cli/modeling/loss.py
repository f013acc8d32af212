"""The loss of every supervised token, with the language-model head run at no other position."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def token_nats(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Negative log-likelihood of every target of a batch.

    Args:
        model: A causal language model, wrapped or not.
        batch: ``input_ids`` (1, T), ``position_ids`` (1, T), ``positions`` (K,) and ``targets`` (K,): the model's
            distribution at ``positions[k]`` is asked for ``targets[k]``.

    Returns:
        Nats, float32, shape ``(K,)``.
    """
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
    if _keeps_some_logits(model):
        logits_KV = model(**inputs, logits_to_keep=batch["positions"]).logits[0]
    else:
        logits_KV = model(**inputs).logits[0, batch["positions"]]
    return F.cross_entropy(logits_KV.float(), batch["targets"], reduction="none")


def _keeps_some_logits(model: Any) -> bool:
    while hasattr(model, "module"):  # data-parallel wrappers
        model = model.module
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


@torch.no_grad()
def example_nats(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> list[tuple[float, int]]:
    """Summed nats and supervised tokens of every example of some batches, in order; the model is left in its mode.

    Args:
        model: As in `token_nats`.
        batches: As in `token_nats`, with ``examples`` (K,): the example of each target.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found: list[tuple[float, int]] = []
    for batch in batches:
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        nats_K, example_K = token_nats(model, moved).double(), moved["examples"]
        count = int(example_K.max()) + 1
        sums = torch.zeros(count, dtype=torch.float64, device=device).index_add(0, example_K, nats_K)
        found += zip(sums.tolist(), torch.bincount(example_K, minlength=count).tolist(), strict=True)
    model.train(was_training)
    return found
