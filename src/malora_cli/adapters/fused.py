"""The kernel with the frozen product inside, for training in float32 without autocast.

Autograd would make a new tensor of the size of the layer's input or output for every term and add them up. These two
functions own the frozen product as well, so each term is written into what is there already, and they keep only what
the backward pass cannot compute again for less. `kernel.mixture_delta` is the reference, and what runs everywhere else.

Shape suffixes as in ``kernel``.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from malora_cli.adapters.kernel import Gates, gates_of


def can_fuse(base_layer: nn.Module, x: Tensor, up: Tensor) -> TypeGuard[nn.Linear]:
    """Whether the frozen product of ``base_layer`` may be taken over: a plain float32 linear that nothing watches."""
    return (
        type(base_layer) is nn.Linear
        and x.dtype == up.dtype == base_layer.weight.dtype == torch.float32
        and not base_layer.weight.requires_grad
        and not torch.is_autocast_enabled(x.device.type)
        and not base_layer._forward_hooks
        and not base_layer._forward_pre_hooks
        and not base_layer._backward_hooks
    )


class _Project(torch.autograd.Function):
    """``x`` itself and ``x M^T``; the gradient that ``x`` has met by then is added to in place."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, m_MI: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x_TI, m_MI)
        return x_TI.view_as(x_TI), x_TI @ m_MI.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TI: Tensor, grad_TM: Tensor) -> tuple[Tensor | None, Tensor]:
        x_TI, m_MI = ctx.saved_tensors
        grad_x = grad_TI.addmm_(grad_TM, m_MI) if ctx.needs_input_grad[0] else None
        return grad_x, grad_TM.T @ x_TI


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
    ) -> Tensor:
        ctx.save_for_backward(z_TS, gate_TE, weight_OI, coefficient_QS, up_OQ)
        y_TO = F.linear(x_TI, weight_OI, bias_O)
        return y_TO.addmm_(_gated(_hidden(z_TS, coefficient_QS), gate_TE), up_OQ.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        z_TS, gate_TE, weight_OI, coefficient_QS, up_OQ = ctx.saved_tensors
        hidden_TQ = _hidden(z_TS, coefficient_QS)
        grad_up = grad_TO.T @ _gated(hidden_TQ, gate_TE)
        grad_TER = (grad_TO @ up_OQ).unflatten(-1, (gate_TE.shape[-1], -1))
        grad_gate = (grad_TER * hidden_TQ.view_as(grad_TER)).sum(-1)
        grad_hidden = grad_TER.mul_(gate_TE.unsqueeze(-1)).flatten(-2)
        grad_coefficient = None if coefficient_QS is None else grad_hidden.T @ z_TS
        grad_z = grad_hidden if coefficient_QS is None else grad_hidden @ coefficient_QS
        grad_x = grad_TO @ weight_OI if ctx.needs_input_grad[0] else None
        return grad_x, grad_z, grad_gate, None, None, grad_coefficient, grad_up


def _hidden(z_TS: Tensor, coefficient_QS: Tensor | None) -> Tensor:
    return z_TS if coefficient_QS is None else z_TS @ coefficient_QS.T


def _gated(hidden_TQ: Tensor, gate_TE: Tensor) -> Tensor:
    return (hidden_TQ.unflatten(-1, (gate_TE.shape[-1], -1)) * gate_TE.unsqueeze(-1)).flatten(-2)


def fused_mixture(
    base_layer: nn.Linear,
    x: Tensor,
    *,
    dropout: nn.Module,
    down_SI: Tensor,
    coefficient_QS: Tensor | None,
    up_OQ: Tensor,
    router_EI: Tensor,
    scaling: float,
    top_k: int,
    renormalize: bool,
) -> tuple[Tensor, Gates]:
    """The adapted layer's whole output, and its gates.

    Args:
        base_layer: The frozen linear, for which `can_fuse` holds.
        x: Input, shape ``(..., I)``.
        dropout: On the input of the down-projection; never on the router's.
        down_SI: As for `kernel.mixture_delta`, and so are the others.
        coefficient_QS: The experts' coefficients; None where they are the identity.
        up_OQ: The experts' up-projections.
        router_EI: Router weight.
        scaling: ``alpha / r``.
        top_k: Experts kept for a token.
        renormalize: Divide the kept gates by their sum.
    """
    x_TI = x.flatten(0, -2)
    if dropout.training and not isinstance(dropout, nn.Identity):
        followed_TI, logits_TE = _Project.apply(x_TI, router_EI)
        z_TS = F.linear(dropout(followed_TI), down_SI)
    else:
        followed_TI, projected = _Project.apply(x_TI, torch.cat([down_SI, router_EI]))
        z_TS, logits_TE = projected.split([len(down_SI), len(router_EI)], dim=-1)
    gates = gates_of(logits_TE, top_k=top_k, renormalize=renormalize)
    # What came out of a function asks for a gradient even where the input itself does not, as in the first layer.
    y_TO: Tensor = _Update.apply(
        followed_TI if x.requires_grad else x_TI,
        z_TS,
        gates.gate_TE * scaling,
        base_layer.weight,
        base_layer.bias,
        coefficient_QS,
        up_OQ,
    )
    return y_TO.unflatten(0, x.shape[:-1]), gates
