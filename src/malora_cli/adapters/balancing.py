"""The gates of a router with a gradient of their own, and the balance loss, which is part of it.

The balance loss reaches the gradient through the backward pass of the gates: nothing is collected from modules
afterwards, so it survives both kinds of gradient checkpointing, data-parallel wrappers and accumulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from malora_cli.adapters.entrywise import Pull, Steps, plain
from malora_cli.adapters.kernel import Load, Seen, balance_pulls
from malora_cli.adapters.routing import Routing

#: Zeros that are made at a time.
_ZEROS = 4096


class Loads:
    """The loads of the routers of one forward pass, until its backward pass needs what they pull at.

    Nothing needs it before, so the processes exchange all that have come together by then at once. Layers that are
    computed again in a reentrant checkpoint come later, a few at a time.
    """

    def __init__(self) -> None:
        self._loads: list[tuple[Load, float]] = []
        self._pulls: list[tuple[Tensor, Tensor]] = []
        self._zeros: dict[torch.device, Tensor] = {}

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

    def zeros(self, size: int, device: torch.device) -> Tensor:
        """Zeros to be written to, parts of one tensor for many routers: on a GPU each tensor of them is a call."""
        left = self._zeros.get(device)
        if left is None or len(left) < size:
            left = torch.zeros(max(_ZEROS, size), dtype=torch.float32, device=device)
        zeros, self._zeros[device] = left[:size], left[size:]
        return zeros


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

    def pull(self, device: torch.device) -> Pull:
        """What is added to the gradient by the logits; where a tally runs, it is to be told of the loss, see `tell`."""
        pull_E, weighted_E = (pull.to(device) for pull in self.loads.pull(self.number))
        weight = self.routing.balance_weight
        if isinstance(weight, Tensor):  # of the loss, which may be on another device than this layer
            weight = weight.to(device)
        balance_E = None if self.routing.tally is None else self.loads.zeros(len(pull_E), device)
        return Pull(pull_E, weighted_E, weight, self.token_mask, balance_E)

    def tell(self, pull: Pull) -> None:
        """Tell the tally that runs of the loss, once it has been computed."""
        if self.routing.tally is not None and pull.balance_E is not None:
            self.routing.tally.add_balance(self.router, pull.balance_E)


class Choice(NamedTuple):
    """What a router has chosen for some tokens, as it is known in the forward pass."""

    logits_TE: Tensor  # float32, without a history as the gates
    gate_TE: Tensor  # `kernel.top_gates`
    renormalize: bool  # whether the kept gates are divided by their sum
    balance: Balance | None  # None where there is no balance loss
    seen: Seen | None  # what is told of it in evaluation alone


class Choose(Protocol):
    """Gives what a router chooses.

    Args:
        terms_TE: One or two tensors whose sum are its logits, see `logits.terms_of`.
        differentiable: Whether there will be a backward pass.
        steps: How it is computed.
    """

    def __call__(  # noqa: D102
        self, terms_TE: Sequence[Tensor], *, differentiable: bool, steps: Steps = plain
    ) -> Choice: ...


def logits_gradient(
    steps: Steps,
    grad_TE: Tensor,
    logits_TE: Tensor,
    gate_TE: Tensor,
    *,
    renormalize: bool,
    balance: Balance | None,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient by the logits of a `Choice`, with that of its balance loss; see ``entrywise.plain``."""
    pull = None if balance is None else balance.pull(grad_TE.device)
    grad_logits = steps.logits_gradient(grad_TE, logits_TE, gate_TE, renormalize=renormalize, pull=pull, dtype=dtype)
    if balance is not None and pull is not None:
        balance.tell(pull)
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
        how = {"renormalize": ctx.renormalize, "balance": ctx.balance, "dtype": grad_TE.dtype}
        return logits_gradient(plain, grad_TE, *ctx.saved_tensors, **how), None


def gates_of(logits_TE: Tensor, choice: Choice) -> Tensor:
    """The gates that were chosen, with the history of their logits where these have one."""
    gates: Tensor = _Gate.apply(logits_TE, choice) if logits_TE.requires_grad else choice.gate_TE
    return gates
