"""The loss of every supervised token, with the language-model head run at no other position."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PROBE_TOKENS = 8


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
def reads_across_examples(model: nn.Module) -> bool:
    """Whether a model's view of one example changes with the example that stands before it in the row.

    Position ids that restart keep examples apart wherever attention goes through transformers' mask functions. Models
    with recurrent layers or with position schemes of their own do not look at them.

    Args:
        model: A causal language model with its weights, on the device that it is used on.
    """
    was_training = model.training
    model.eval()
    size = int(model.config.get_text_config().vocab_size)  # type: ignore[operator, union-attr]
    run_P = torch.arange(_PROBE_TOKENS, device=next(model.parameters()).device)
    ids = torch.cat([size // 2 + run_P, size // 3 + run_P]).unsqueeze(0) % size
    alone_PV = model(input_ids=ids[:, _PROBE_TOKENS:], position_ids=run_P.unsqueeze(0), use_cache=False).logits[0]
    both_PV = model(input_ids=ids, position_ids=run_P.repeat(1, 2), use_cache=False).logits[0, _PROBE_TOKENS:]
    model.train(was_training)
    # Far above what rounding does, far below what other tokens in view do.
    tolerance = 1e-4 if alone_PV.dtype == torch.float32 else 0.1
    change = (both_PV.float() - alone_PV.float()).abs().mean()
    return bool(change > tolerance * alone_PV.float().std())


@torch.no_grad()
def example_nats(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> list[tuple[float, int]]:
    """Summed nats and supervised tokens of every example of some batches, in order; the model is left in its mode.

    Args:
        model: As in `token_nats`.
        batches: As in `token_nats`, with ``examples`` (K,): the example of each target. Every example starts at
            position 0; one without a target counts as zero nats and tokens.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found: list[tuple[float, int]] = []
    for batch in batches:
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        nats_K, example_K = token_nats(model, moved).double(), moved["examples"]
        count = int((moved["position_ids"] == 0).sum())
        sums = torch.zeros(count, dtype=torch.float64, device=device).index_add(0, example_K, nats_K)
        found += zip(sums.tolist(), torch.bincount(example_K, minlength=count).tolist(), strict=True)
    model.train(was_training)
    return found
