"""The kernel with the frozen product inside, for float32 without autocast.

Autograd would make a new tensor of the size of the layer's input or output for every term and add them up. The two
functions of the training path own the frozen product as well, so each term is written into what is there already, and
they keep only what the backward pass cannot compute again for less. `kernel.mixture_delta` is the reference, and what
runs everywhere else.

Shape suffixes as in ``kernel``; M stands for the ranks of the down-projection and the experts of a router together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from malora_cli.adapters.gathered import add_gathered, gathering_pays, gradients_gathered
from malora_cli.adapters.kernel import Factors, Gates

_LOTS = 1 << 16


def can_fuse(base_layer: nn.Module, x: Tensor, up: Tensor, dropout: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the frozen product of ``base_layer`` may be taken over: a plain float32 linear that nothing watches."""
    return (
        type(base_layer) is nn.Linear
        and type(dropout) in (nn.Dropout, nn.Identity)
        and x.dtype == up.dtype == base_layer.weight.dtype == torch.float32
        and not base_layer.weight.requires_grad
        and not torch.is_autocast_enabled(x.device.type)
        and not base_layer._forward_hooks
        and not base_layer._forward_pre_hooks
        and not base_layer._backward_hooks
    )


def draw_kept(x_TI: Tensor, p: float) -> tuple[Tensor, float]:
    """Which entries of the input a dropout keeps, and what it multiplies them by.

    Four entries share one number of the generator, 16 bits each: on a CPU, drawing numbers is most of what dropout
    costs. The rate is that of ``p`` in units of 2^-16, and the factor is exact for it, so nothing is biased.

    Returns:
        Mask, shape of ``x_TI``, and ``1 / (1 - rate)``.
    """
    lots = torch.empty(-(-x_TI.numel() // 4), dtype=torch.int64, device=x_TI.device).random_(-(1 << 63), None)
    dropped = min(round(p * _LOTS), _LOTS - 1)
    kept = lots.view(torch.int16)[: x_TI.numel()].view_as(x_TI) >= dropped - _LOTS // 2
    return kept, _LOTS / (_LOTS - dropped)


class _Project(torch.autograd.Function):
    """``x`` itself and ``x M^T``; the gradient that ``x`` has met by then is added to in place."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, m_MI: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x_TI, m_MI)
        return x_TI.view_as(x_TI), x_TI @ m_MI.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TI: Tensor, grad_TM: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, m_MI = ctx.saved_tensors
        grad_x = grad_TI.addmm_(grad_TM, m_MI) if ctx.needs_input_grad[0] else None
        grad_m = grad_TM.T @ x_TI if ctx.needs_input_grad[1] else None
        return grad_x, grad_m


class _ProjectKept(torch.autograd.Function):
    """``x`` itself and ``(x * kept) M^T``: the same behind a dropout, whose output is made again, not kept."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, m_MI: Tensor, kept_TI: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x_TI, m_MI, kept_TI)
        return x_TI.view_as(x_TI), (x_TI * kept_TI) @ m_MI.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TI: Tensor, grad_TM: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, m_MI, kept_TI = ctx.saved_tensors
        grad_m = grad_TM.T @ (x_TI * kept_TI) if ctx.needs_input_grad[1] else None
        grad_x = grad_TI.add_((grad_TM @ m_MI).mul_(kept_TI)) if ctx.needs_input_grad[0] else None
        return grad_x, grad_m, None


class _Update(torch.autograd.Function):
    """``x W^T + b + ((z C^T) * gate) U^T``; the hidden states are computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        z_TS: Tensor,
        gate_TE: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        coefficient_QS: Tensor | None,
        up_OQ: Tensor,
        gather: bool,
    ) -> Tensor:
        ctx.save_for_backward(z_TS, gate_TE, weight_OI, coefficient_QS, up_OQ)
        ctx.gather = gather
        y_TO = F.linear(x_TI, weight_OI, bias_O)
        gated_TER = _hidden(z_TS, coefficient_QS, gate_TE) * gate_TE.unsqueeze(-1)
        if gather:
            return add_gathered(y_TO, gated_TER, gate_TE, up_OQ)
        return y_TO.addmm_(gated_TER.flatten(-2), up_OQ.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        z_TS, gate_TE, weight_OI, coefficient_QS, up_OQ = ctx.saved_tensors
        hidden_TER = _hidden(z_TS, coefficient_QS, gate_TE)
        gated_TER = hidden_TER * gate_TE.unsqueeze(-1)
        if ctx.gather:
            grad_TER, grad_up = gradients_gathered(grad_TO, gated_TER, gate_TE, up_OQ)
        else:
            grad_TER = (grad_TO @ up_OQ).view_as(hidden_TER)
            grad_up = grad_TO.T @ gated_TER.flatten(-2)
        grad_gate = (grad_TER * hidden_TER).sum(-1)
        grad_hidden = grad_TER.mul_(gate_TE.unsqueeze(-1)).flatten(-2)
        grad_coefficient = grad_hidden.T @ z_TS if ctx.needs_input_grad[5] else None
        grad_z = grad_hidden if coefficient_QS is None else grad_hidden @ coefficient_QS
        grad_x = grad_TO @ weight_OI if ctx.needs_input_grad[0] else None
        return grad_x, grad_z, grad_gate, None, None, grad_coefficient, grad_up, None


def _hidden(z_TS: Tensor, coefficient_QS: Tensor | None, gate_TE: Tensor) -> Tensor:
    hidden_TQ = z_TS if coefficient_QS is None else z_TS @ coefficient_QS.T
    return hidden_TQ.unflatten(-1, (gate_TE.shape[-1], -1))


def inferred_mixture(
    base_layer: nn.Linear,
    x: Tensor,
    factors: Factors,
    *,
    router_EI: Tensor | None,
    gates_of: Callable[[Tensor | None], Gates],
    scaling: float,
    top_k: int,
) -> tuple[Tensor, Gates]:
    """The adapted layer's whole output where no gradient is wanted, in as few calls as can be.

    At one token a step, as in decoding, it is the number of calls that counts. The arguments are those of
    `fused_mixture`.
    """
    x_TI = x.flatten(0, -2)
    down_SI, coefficient_QS, up_OQ = factors
    gates = gates_of(None if router_EI is None else F.linear(x_TI, router_EI))
    gate_TE = gates.gate_TE.flatten(0, -2) * scaling
    gated_TER = _hidden(F.linear(x_TI, down_SI), coefficient_QS, gate_TE) * gate_TE.unsqueeze(-1)
    y_TO = F.linear(x_TI, base_layer.weight, base_layer.bias)
    if gathering_pays(gate_TE, up_OQ, top_k):
        add_gathered(y_TO, gated_TER, gate_TE, up_OQ)
    else:
        y_TO.addmm_(gated_TER.flatten(-2), up_OQ.T)
    return y_TO.view(*x.shape[:-1], -1), gates


def fused_mixture(
    base_layer: nn.Linear,
    x: Tensor,
    factors: Factors,
    *,
    dropout: float,
    router_EI: Tensor | None,
    gates_of: Callable[[Tensor | None], Gates],
    scaling: float,
    top_k: int,
) -> tuple[Tensor, Gates]:
    """The adapted layer's whole output, for training, and its gates.

    Args:
        base_layer: The frozen linear, for which `can_fuse` holds.
        x: Input, shape ``(..., I)``.
        factors: The experts.
        dropout: Rate of the dropout on the input of the down-projection; the router's input has none.
        router_EI: Router weight; None where another linear of the block has the router.
        gates_of: The gates for the router's logits; they are None where there is no router here.
        scaling: ``alpha / r``.
        top_k: Experts kept for a token.
    """
    x_TI = x.flatten(0, -2)
    down_SI, coefficient_QS, up_OQ = factors
    # What comes out of a function asks for a gradient even where the input itself does not, as in the first layer.
    followed_TI, logits_TE = x_TI, None
    if not dropout and router_EI is not None:
        through_TI, projected_TM = _Project.apply(x_TI, torch.cat([down_SI, router_EI]))
        z_TS, logits_TE = projected_TM.split([len(down_SI), len(router_EI)], dim=-1)
        followed_TI = through_TI if x.requires_grad else x_TI
    else:
        if router_EI is not None:
            through_TI, logits_TE = _Project.apply(followed_TI, router_EI)
            followed_TI = through_TI if x.requires_grad else x_TI
        if dropout:
            kept_TI, factor = draw_kept(x_TI, dropout)
            through_TI, z_TS = _ProjectKept.apply(followed_TI, down_SI * factor, kept_TI)
        else:
            through_TI, z_TS = _Project.apply(followed_TI, down_SI)
        followed_TI = through_TI if x.requires_grad else x_TI
    gates = gates_of(logits_TE)
    y_TO: Tensor = _Update.apply(
        followed_TI,
        z_TS,
        gates.gate_TE.flatten(0, -2) * scaling,
        base_layer.weight,
        base_layer.bias,
        coefficient_QS,
        up_OQ,
        gathering_pays(gates.gate_TE, up_OQ, top_k),
    )
    return y_TO.unflatten(0, x.shape[:-1]), gates
