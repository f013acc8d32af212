"""The gates of a router with a gradient of their own, and the balance loss, which is part of it.

The balance loss reaches the gradient through the backward pass of the gates: nothing is collected from modules
afterwards, so it survives both kinds of gradient checkpointing, data-parallel wrappers and accumulation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from malora_cli.adapters.kernel import Load, Seen, balance_by_expert, balance_pulls
from malora_cli.adapters.routing import Routing


class Loads:
    """The loads of the routers of one forward pass, until its backward pass needs what they pull at.

    Nothing needs it before, so the processes exchange all that have come together by then at once. Layers that are
    computed again in a reentrant checkpoint come later, a few at a time.
    """

    def __init__(self) -> None:
        self._loads: list[tuple[Load, float]] = []
        self._pulls: list[tuple[Tensor, Tensor]] = []

    def add(self, load: Load, factor: float) -> int:
        """Take the load of a router and the weight of its balance loss; its number is what `pull` is asked by."""
        self._loads.append((load, factor))
        return len(self._loads) - 1

    def pull(self, number: int) -> tuple[Tensor, Tensor]:
        """The `kernel.balance_pulls` of one, and that times the weight of its balance loss."""
        if number >= len(self._pulls):
            loads, factors = zip(*self._loads[len(self._pulls) :], strict=True)
            pulls = balance_pulls(loads)
            self._pulls += zip(pulls, torch._foreach_mul(pulls, factors), strict=True)
        return self._pulls[number]


@dataclass(frozen=True)
class Balance:
    """What the backward pass of one router's gates adds for its balance loss.

    Args:
        loads: Of its forward pass.
        number: Its own of these.
        router: Its row in a tally.
        token_mask: 1 for real tokens, 0 for padding; None when all are real.
        routing: Knows the weight once the backward pass has begun.
    """

    loads: Loads
    number: int
    router: int
    token_mask: Tensor | None
    routing: Routing

    def gradient(self, probability_TE: Tensor) -> Tensor:
        """``p * (pull - sum_t p_t pull_t)`` for every real token; the loss itself goes to the tally that runs.

        Args:
            probability_TE: Full softmax of the router.

        Returns:
            The gradient by its logits, shape ``(..., E)``.
        """
        pull_E, weighted_E = (pull.to(probability_TE.device) for pull in self.loads.pull(self.number))
        if self.routing.tally is not None:
            self.routing.tally.add_balance(self.router, balance_by_expert(probability_TE, pull_E, self.token_mask))
        weight = self.routing.balance_weight
        if isinstance(weight, Tensor):  # of the loss, which may be on another device than this layer
            weight = weight.to(pull_E.device)
        pull_TE = (weighted_E * weight).expand_as(probability_TE)
        if self.token_mask is not None:
            pull_TE = pull_TE * self.token_mask.reshape(*pull_TE.shape[:-1], 1).to(pull_TE)
        return _through_softmax(pull_TE, probability_TE)


def _through_softmax(grad_TE: Tensor, probability_TE: Tensor) -> Tensor:
    """``p * (grad - sum_t p_t grad_t)``: the gradient by the logits, in one kernel."""
    return torch._softmax_backward_data(grad_TE.contiguous(), probability_TE, -1, probability_TE.dtype)


class Choice(NamedTuple):
    """What a router has chosen for some tokens, as it is known in the forward pass."""

    gate_TE: Tensor  # `kernel.top_gates`, without a history
    renormalize: bool  # whether the kept gates are divided by their sum
    balance: Balance | None  # None where there is no balance loss
    seen: Seen | None  # what is told of it in evaluation alone


def logits_gradient(
    grad_TE: Tensor, logits_TE: Tensor, gate_TE: Tensor, *, renormalize: bool, balance: Balance | None
) -> Tensor:
    """The gradient by a router's logits of what its gates go into, and of its balance loss.

    Renormalised gates are a softmax over the kept logits: experts outside the top k have a gate of 0, and so a gradient
    of 0. Literal ones are the softmax over all, of which the kept alone have a gradient.

    Args:
        grad_TE: Gradient by the gates.
        logits_TE: Of the router, float32.
        gate_TE: The gates that it chose by them, and so are the others, see `Choice`.
        renormalize: Whether these are divided by their sum.
        balance: None where there is no balance loss.
    """
    probability_TE = logits_TE.softmax(-1) if balance is not None or not renormalize else gate_TE
    kept = (grad_TE, gate_TE) if renormalize else (grad_TE * (gate_TE > 0), probability_TE)
    grad_logits = _through_softmax(*kept)
    if balance is not None:
        grad_logits += balance.gradient(probability_TE)
    return grad_logits


class _Gate(torch.autograd.Function):
    """The gates with a gradient of their own. One node stands for a dozen: their cost is in their number."""

    @staticmethod
    def forward(ctx, logits_TE: Tensor, choice: Choice) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(logits_TE, choice.gate_TE)
        ctx.renormalize, ctx.balance = choice.renormalize, choice.balance
        return choice.gate_TE.view_as(choice.gate_TE)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TE: Tensor):  # type: ignore[no-untyped-def]
        return logits_gradient(grad_TE, *ctx.saved_tensors, renormalize=ctx.renormalize, balance=ctx.balance), None


def gates_of(logits_TE: Tensor, choice: Choice) -> Tensor:
    """The gates that were chosen, with the history of their logits where these have one."""
    gates: Tensor = _Gate.apply(logits_TE, choice) if logits_TE.requires_grad else choice.gate_TE
    return gates
