"""The loss of every supervised token, with the language-model head run at no other position."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from malora_cli.modeling.attention import packed
from malora_cli.modeling.device import exact
from malora_cli.modeling.modes import as_trained, evaluating

#: Most that the logits of one call of the head may take, in float32.
LOGITS_BYTES = 2**28
_PROBE_TOKENS = 8
#: Models whose logits are what their head makes of the last hidden states, and nothing else.
_PLAIN_HEADS: WeakSet[nn.Module] = WeakSet()


def token_nats(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Negative log-likelihood of every target of a batch.

    Args:
        model: A causal language model, wrapped or not.
        batch: ``input_ids`` (1, T), ``position_ids`` (1, T), ``positions`` (K,) and ``targets`` (K,): the model's
            distribution at ``positions[k]`` is asked for ``targets[k]``; ``lengths``, the tokens of each example. Where
            tokens may see others than those before them in their example, ``attention_mask`` (1, 1, T, T) says which in
            place of the lengths.

    Returns:
        Nats, float32, shape ``(K,)``.
    """
    positions_K, targets_K = batch["positions"], batch["targets"]
    base = _unwrapped(model)
    if not _keeps_some_logits(base):
        return _nats(_logits(model, batch)[positions_K], targets_K)
    size = LOGITS_BYTES // (4 * _vocabulary(base)) or 1
    if len(positions_K) <= size or not _has_plain_head(base):
        return _nats(_logits(model, batch, logits_to_keep=positions_K), targets_K)
    with _headless(base) as head:
        hidden_KH = _logits(model, batch, logits_to_keep=positions_K)
    chunks = zip(hidden_KH.split(size), targets_K.split(size), strict=True)
    return torch.cat([checkpoint(_head_nats, head, h, t, use_reentrant=False) for h, t in chunks])


def target_logits(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The logits at every target of a batch, float32, shape ``(K, vocabulary)``; arguments as in `token_nats`."""
    positions_K = batch["positions"]
    if not _keeps_some_logits(_unwrapped(model)):
        return _logits(model, batch)[positions_K].float()
    return _logits(model, batch, logits_to_keep=positions_K).float()


def moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors on a device, without waiting for a GPU; lengths of its examples stay where they are."""
    ahead = device.type == "cuda"
    return {
        name: value.to(device, non_blocking=ahead) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _logits(model: nn.Module, batch: Mapping[str, Any], **settings: Any) -> Tensor:
    """What a model makes of the row, shape ``(T, vocabulary)`` unless the settings leave some out."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask") if name in batch}
    with packed(_unwrapped(model), batch.get("lengths", ()), batch["input_ids"].device) as told:
        return model(**inputs, **told, use_cache=False, **settings).logits[0]


def _nats(logits_KV: Tensor, targets_K: Tensor) -> Tensor:
    return F.cross_entropy(logits_KV.float(), targets_K, reduction="none")


def _head_nats(head: nn.Linear, hidden_KH: Tensor, targets_K: Tensor) -> Tensor:
    # Wrappers for mixed precision hand float32 out, whatever the head is in.
    return _nats(head(hidden_KH.to(head.weight.dtype)), targets_K)


def _unwrapped(model: Any) -> Any:
    while hasattr(model, "module"):  # data-parallel wrappers
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _has_plain_head(base: PreTrainedModel) -> bool:
    """Whether logits are what an ordinary linear makes of the last hidden states: no adapter, and nothing after it."""
    return base in _PLAIN_HEADS and isinstance(base.get_output_embeddings(), nn.Linear)


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _keeps_some_logits(base: nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(base.forward).parameters


@contextmanager
def _headless(base: PreTrainedModel) -> Iterator[nn.Linear]:
    """Within the block the model's logits are its last hidden states; yields the head."""
    head = base.get_output_embeddings()
    head.forward = lambda hidden: hidden
    try:
        yield head
    finally:
        del head.forward


@torch.no_grad()
def note_plain_head(base: PreTrainedModel) -> None:
    """Let `token_nats` run a model's head in chunks where its logits would take more than `LOGITS_BYTES`.

    Not done where the model itself does more to its logits, such as capping them.

    Args:
        base: The model before it is wrapped, with its weights.
    """
    if not _keeps_some_logits(base) or not isinstance(base.get_output_embeddings(), nn.Linear):
        return
    ids = torch.arange(_PROBE_TOKENS, device=base.device).unsqueeze(0) % _vocabulary(base)
    with _headless(base) as head:
        hidden = base(input_ids=ids, use_cache=False).logits
    logits = base(input_ids=ids, use_cache=False).logits
    # Some hand float32 out whatever they compute in.
    if torch.equal(head(hidden.to(head.weight.dtype)).to(logits.dtype), logits):
        _PLAIN_HEADS.add(base)


@torch.no_grad()
def reads_across_examples(model: PreTrainedModel) -> bool:
    """Whether a model's view of one example changes with the example that stands before it in the row.

    Position ids that restart keep examples apart wherever attention goes through transformers' mask functions. Models
    with recurrent layers or with position schemes of their own do not look at them. Two rows that differ in their first
    example only go through the same kernels, so that a second example that is kept apart is the same bit by bit: but
    for experts, whose kernels go by how many tokens they are sent, and 8-bit products, which look at all rows together.
    How much these round differently shows in an example that is followed by another one, which it cannot see.

    Args:
        model: A causal language model with its weights, on the device that it is used on.
    """
    was_training = model.training
    model.eval()
    size = _vocabulary(model)
    run_P = torch.arange(_PROBE_TOKENS, device=next(model.parameters()).device)

    def logits_PV(first: int, second: int, asked: slice) -> Tensor:
        ids = torch.cat([first + run_P, second + run_P]).unsqueeze(0) % size
        with packed(model, (_PROBE_TOKENS,) * 2, ids.device, by_example=True) as told:
            found_PV = model(input_ids=ids, position_ids=run_P.repeat(1, 2), use_cache=False, **told).logits[0, asked]
        return found_PV.float().nan_to_num()  # an overflow is none of the other example's doing

    asked, one, other = size // 4, size // 3, size // 2
    behind, before = slice(_PROBE_TOKENS, None), slice(_PROBE_TOKENS)
    view_PV = logits_PV(one, asked, behind)
    change = _largest_change(view_PV, logits_PV(other, asked, behind))
    rounding = _largest_change(logits_PV(asked, one, before), logits_PV(asked, other, before)) if change else 0.0
    model.train(was_training)
    deviation = view_PV.std().item()
    # What is read across from a trained model's example is about its logits' deviation.
    return change > min(4 * rounding + 1e-5 * deviation, 0.1 * deviation)


def _largest_change(one_PV: Tensor, other_PV: Tensor) -> float:
    """Mean change of the logits at the position where it is the largest: a state that decays reaches few of them."""
    return (one_PV - other_PV).abs().mean(1).max().item()


@torch.no_grad()
def example_nats(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> list[tuple[float, int]]:
    """Summed nats and supervised tokens of every example of some batches, in order; computed as in training.

    Args:
        model: As in `token_nats`.
        batches: As in `token_nats`, with ``examples`` (K,): the example of each target. One without a target counts as
            zero nats and tokens.
    """
    device = next(model.parameters()).device
    found: list[tuple[float, int]] = []
    with evaluating(model), as_trained(model):
        for batch in batches:
            nats_K = exact(token_nats(model, moved(batch, device)))
            example_K = batch["examples"].to(nats_K.device)
            count = len(batch["lengths"])
            sums = nats_K.new_zeros(count).index_add(0, example_K, nats_K)
            found += zip(sums.tolist(), torch.bincount(example_K, minlength=count).tolist(), strict=True)
    return found
