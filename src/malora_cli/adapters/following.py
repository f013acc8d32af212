"""What the forward passes of a wrapped model tell its routers: which tokens are real, and what becomes of the loss.

Hooks on the model itself, so that it is all the same whether PEFT's wrapper calls it, transformers' ``add_adapter`` has
put the adapter in, or ``inject_adapter_in_model``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from accelerate.state import GradientState
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from malora_cli.adapters.balancing import Loads
from malora_cli.adapters.eager import eager
from malora_cli.adapters.routing import Routing, scale_balance_with, scale_balance_with_tokens

IGNORED_LABEL = -100


@dataclass
class StepShares:
    """How much each micro-batch's balance loss is of its step's, where the loss itself cannot say.

    They add up to 1. Nobody knows how many micro-batches a step will have, only which is the last; so each takes its
    share by the number of them in the step before, and the last takes the rest.
    """

    _before: int | None = None
    _count: int = 0
    _given: float = 0.0

    def take(self, *, last: bool) -> float:
        """The share of the next micro-batch."""
        self._count += 1
        rest = 1.0 - self._given
        if last:
            self._before, self._count, self._given = self._count, 0, 0.0
            return rest
        share = min(1.0 / self._before, rest) if self._before else 0.0
        self._given += share
        return share


@dataclass
class Follower:
    """The hooks of one model.

    Args:
        routing: Of the model.
        shares: Of the micro-batches of a step.
    """

    routing: Routing
    shares: StepShares = field(default_factory=StepShares)

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note which tokens of this forward pass are real."""
        mask = _named(model, args, kwargs).get("attention_mask")
        self.routing.token_mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        if model.training and torch.is_grad_enabled():
            self._begin()

    def after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The output, whose loss tells the balance loss what a trainer makes it weigh."""
        if not model.training:  # nothing is computed again
            self.routing.token_mask = None
        elif torch.is_grad_enabled():
            return self._followed(output, _named(model, args, kwargs))
        return output

    @eager
    def _begin(self) -> None:
        """Collect loads, and note the weight that the balance loss has where a trainer makes a loss of its own."""
        self.routing.loads = Loads()
        self.routing.balance_weight = self.shares.take(last=GradientState().sync_gradients)

    @eager
    def _followed(self, output: Any, inputs: Mapping[str, Any]) -> Any:
        """The output, with the loss that the model returns followed, or the log-probabilities behind it."""
        if isinstance(output, tuple):
            if inputs.get("labels") is not None and _is_loss(output[0]):
                return (scale_balance_with(output[0], _share_of_batch(inputs), self.routing), *output[1:])
            return output
        if _is_loss(loss := getattr(output, "loss", None)):
            output.loss = scale_balance_with(loss, _share_of_batch(inputs), self.routing)
        # Of TRL's head, see `trl.trainer.utils.FusedCausalLMOutput`.
        log_probs, mask = getattr(output, "log_probs", None), getattr(output, "label_mask", None)
        if isinstance(log_probs, Tensor) and isinstance(mask, Tensor) and log_probs.requires_grad:
            output.log_probs = scale_balance_with_tokens(log_probs, mask, self.routing)
        return output


def _is_loss(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() == 0 and value.requires_grad


def follow(model: nn.Module, routing: Routing) -> list[RemovableHandle]:
    """Hang the hooks on a model, unless they are there."""
    if any(isinstance(getattr(hook, "__self__", None), Follower) for hook in model._forward_pre_hooks.values()):
        return []
    follower = Follower(routing)
    return [
        model.register_forward_pre_hook(follower.before, with_kwargs=True),
        model.register_forward_hook(follower.after, with_kwargs=True),
    ]


def _named(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """The model's inputs by name, also of those given by position."""
    if len(args) < 2:  # the first is never of interest here
        return kwargs
    return inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments | kwargs


def _share_of_batch(inputs: Mapping[str, Any]) -> Tensor | float:
    """This micro-batch's share of the supervised tokens of the whole batch, where the trainer says their number."""
    labels, total = inputs.get("labels"), inputs.get("num_items_in_batch")
    if labels is None or total is None:
        return 1.0
    share: Tensor = (labels[..., 1:] != IGNORED_LABEL).sum() / total
    return share
