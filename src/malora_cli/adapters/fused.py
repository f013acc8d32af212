"""The kernel with the frozen product inside, for float32 and for half precision in training.

A quantised layer multiplies by itself; all else is the same.

Autograd would make a new tensor of the size of the layer's input or output for every term and add them up. The two
functions of the training path own the frozen product as well, so each term is written into what is there already, and
they keep only what the backward pass cannot compute again for less. `kernel.mixture_delta` is the reference, and what
runs everywhere else.

Shape suffixes as in ``kernel``; M stands for the ranks of the down-projection and the experts of a router together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as hooks

from malora_cli.adapters.balancing import Choice, Choose, logits_gradient
from malora_cli.adapters.dropout import Drawn, drop, drop_again
from malora_cli.adapters.entrywise import plain as plain_steps
from malora_cli.adapters.entrywise import steps_for
from malora_cli.adapters.gathered import add_gathered, gathering_pays, gradients_gathered
from malora_cli.adapters.kernel import Factors, Seen
from malora_cli.adapters.logits import (
    HALF,
    add_gradient,
    gradient_dtype,
    multiplies_into_float32,
    router_gradient,
    terms_of,
    weight_gradient,
)
from malora_cli.adapters.precision import rounds_float32
from malora_cli.adapters.product import add_product, product
from malora_cli.adapters.quick import QuickLinear
from malora_cli.adapters.rounded import Rounded, rounded

#: bitsandbytes' layers, which are fused in training: packed weights are no matrix to multiply by, so they do it.
_QUANTISED = ("Linear4bit", "Linear8bitLt")


def can_fuse(base_layer: nn.Module, x: Tensor, up: Tensor, dropout: nn.Module) -> bool:
    """Whether the adapted layer may be computed here: its base is a plain linear or a quantised one, and unwatched.

    A compiler fuses what it sees by itself, and does not see the arithmetic in place.
    """
    training = dropout.training  # as the layer is
    return (
        not torch.compiler.is_compiling()
        and ((_is_plain(base_layer) and x.dtype == base_layer.weight.dtype) or (training and _is_quantised(base_layer)))
        and type(dropout) in (nn.Dropout, nn.Identity)
        and _is_one_format(x, up, training=training)
        and not _is_watched(base_layer)
    )


def _is_watched(layer: nn.Module) -> bool:
    """Whether a hook looks at a layer, its own or one of all modules."""
    own = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return bool(
        own
        or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
    )


def _is_plain(base_layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the frozen product itself may be taken over: of plain tensors, none of which trains.

    Libraries that move or pack weights replace a module's ``forward``, or the type of its weight.
    """
    return (
        type(base_layer) in (nn.Linear, QuickLinear)
        and type(base_layer.weight) is nn.Parameter
        and not any(parameter.requires_grad for parameter in base_layer.parameters(recurse=False))
        and "forward" not in vars(base_layer)
    )


def _is_quantised(base_layer: nn.Module) -> bool:
    kind = type(base_layer)
    return kind.__name__ in _QUANTISED and kind.__module__.startswith("bitsandbytes.")


def _is_one_format(x: Tensor, up: Tensor, *, training: bool) -> bool:
    """Whether experts are computed in the format of the frozen product.

    In evaluation half precision takes the plain way: what a bundle computes is the same to the bit. Where float32
    products may be rounded, as by TF32, those of the router must be apart from the others.
    """
    device = x.device.type
    computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else up.dtype
    if x.dtype == torch.float32:
        return computed == torch.float32 and not rounds_float32(device)
    return training and x.dtype in HALF and computed == x.dtype


class _Project(torch.autograd.Function):
    """``x`` itself, ``dropped D^T``, the gates that a router chooses by ``x W_g^T``, and what was seen of them.

    The gradient that ``x`` has met by the time of the backward pass is added to in place, and the output of the dropout
    is made again there. Without a dropout the gradients of both products are one, but in float16, where a router's stay
    float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        down_SI: Tensor,
        router_EI: Tensor | None,
        dropped_TI: Tensor,
        drawn: Drawn | None,
        weights: Rounded,
        choose: Callable[..., Choice],
    ) -> tuple[Tensor, Tensor, Tensor | None, Seen | None]:
        terms_TE: tuple[Tensor, ...] = ()
        if router_EI is not None and drawn is None and gradient_dtype(x_TI) == x_TI.dtype:
            ctx.sizes = [len(down_SI), len(router_EI)]
            z_TS, terms_TE, down_MI = _both_products(x_TI, router_EI, weights)
            router = None
        else:
            ctx.sizes, down_MI, router = None, weights.down_SI, weights.router_EI
            z_TS = product(dropped_TI, down_MI)
            if router_EI is not None:
                both_MI = weights.both_MI
                terms_TE = terms_of(x_TI, router_EI, None if both_MI is None else both_MI[len(down_SI) :])
        logits_TE = gate_TE = seen = None
        if terms_TE:
            logits_TE, gate_TE, ctx.renormalize, ctx.balance, seen = choose(terms_TE, steps=steps_for(x_TI))
        kept_TI, ctx.inner = (None, 1.0) if drawn is None else (drawn.kept, drawn.inner)
        ctx.save_for_backward(x_TI, down_MI, router, kept_TI, logits_TE, gate_TE)
        return x_TI.view_as(x_TI), z_TS, gate_TE, seen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TI: Tensor, grad_TS: Tensor, grad_TE: Tensor, _seen: None) -> tuple[Tensor | None, ...]:
        """``grad_TE`` is None where there is no router. Autograd brings gradients to the format of what they are of."""
        x_TI, down_MI, router_EI, kept_TI, logits_TE, gate_TE = ctx.saved_tensors
        for_input, for_down, for_router = ctx.needs_input_grad[:3]
        none = [None] * 4
        if grad_TE is not None:
            grad_TE = logits_gradient(
                steps_for(x_TI),
                grad_TE,
                logits_TE,
                gate_TE,
                renormalize=ctx.renormalize,
                balance=ctx.balance,
                dtype=gradient_dtype(x_TI),
            )
        if ctx.sizes is not None:
            grad_TM = torch.cat([grad_TS, grad_TE], dim=-1)
            if for_down and for_router:
                grad_down, grad_router = weight_gradient(grad_TM, x_TI).split(ctx.sizes)
            else:
                grad_down = weight_gradient(grad_TS, x_TI) if for_down else None
                grad_router = weight_gradient(grad_TE, x_TI) if for_router else None
            return add_product(grad_TI, grad_TM, down_MI.T) if for_input else None, grad_down, grad_router, *none
        dropped_TI = x_TI if kept_TI is None or not for_down else drop_again(x_TI, kept_TI, ctx.inner)
        grad_down = weight_gradient(grad_TS, dropped_TI) if for_down else None
        grad_router = router_gradient(grad_TE, x_TI) if for_router else None
        if for_input:
            if router_EI is not None:
                add_gradient(grad_TI, grad_TE, router_EI)
            grad_dropped = product(grad_TS, down_MI.T)
            if kept_TI is None:
                grad_TI.add_(grad_dropped)
            else:
                grad_TI.addcmul_(grad_dropped, kept_TI, value=ctx.inner)
        return grad_TI if for_input else None, grad_down, grad_router, *none


def _both_products(x_TI: Tensor, router_EI: Tensor, weights: Rounded) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """``x D^T`` and the terms of the router's logits, by one product where one serves both; and the two matrices."""
    down_SI = weights.down_SI
    sizes = [len(down_SI), len(router_EI)]
    if x_TI.dtype == torch.float32:
        both_MI = torch.cat([down_SI, router_EI])
        z_TS, logits_TE = product(x_TI, both_MI).split(sizes, dim=-1)
        return z_TS, (logits_TE,), both_MI
    if weights.both_MI is None:
        assert weights.router_EI is not None
        return product(x_TI, down_SI), terms_of(x_TI, router_EI), torch.cat([down_SI, weights.router_EI])
    products_TM = torch.mm(x_TI, weights.both_MI.T, out_dtype=torch.float32)
    z_TS, high_TE, low_TE = products_TM.split([*sizes, len(router_EI)], dim=-1)
    return z_TS.to(x_TI.dtype), (high_TE, low_TE), weights.both_MI[: sum(sizes)]


class _Update(torch.autograd.Function):
    """``x W^T + b + s ((z C^T) * gate) U^T``; the hidden states are computed again in the backward pass.

    Without ``base_layer`` the first argument is not ``x`` but the output of the frozen layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        given_T: Tensor,
        z_TS: Tensor,
        gate_TE: Tensor,
        _coefficient_QS: Tensor | None,
        _up_OQ: Tensor,
        weights: Rounded,
        base_layer: nn.Linear | None,
        scaling: float,
        gather: bool,
    ) -> Tensor:
        weight_OI = None if base_layer is None else base_layer.weight
        ctx.save_for_backward(z_TS, gate_TE, weight_OI, weights.coefficient_QS, weights.up_OQ)
        ctx.scaling, ctx.gather = scaling, gather
        gated_TER = steps_for(z_TS).gate_(_hidden(z_TS, weights.coefficient_QS, gate_TE), gate_TE, scaling)
        if base_layer is None:
            return torch.addmm(given_T, gated_TER.flatten(-2), weights.up_OQ.T)
        return _add_update(_frozen(given_T, base_layer), gated_TER, gate_TE, weights.up_OQ, gather)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        z_TS, gate_TE, weight_OI, coefficient_QS, up_OQ = ctx.saved_tensors
        hidden_TER, steps = _hidden(z_TS, coefficient_QS, gate_TE), steps_for(z_TS)
        grad_up: Tensor | None = None
        if ctx.gather:
            gated_TER = steps.gate_(hidden_TER.clone(), gate_TE, ctx.scaling)
            grad_TER, grad_up = gradients_gathered(grad_TO, gated_TER, gate_TE, up_OQ)
        else:
            grad_TER = product(grad_TO, up_OQ.T).view_as(hidden_TER)
        grad_gate = steps.gated_gradients_(hidden_TER, grad_TER, gate_TE, ctx.scaling)
        if ctx.needs_input_grad[4] and grad_up is None:
            grad_up = _up_gradient(grad_TO, hidden_TER.flatten(-2))
        grad_hidden = grad_TER.flatten(-2)
        grad_coefficient = weight_gradient(grad_hidden, z_TS) if ctx.needs_input_grad[3] else None
        grad_z = grad_hidden if coefficient_QS is None else product(grad_hidden, coefficient_QS.T)
        if weight_OI is None:
            grad_given: Tensor | None = grad_TO
        else:
            grad_given = product(grad_TO, weight_OI.T) if ctx.needs_input_grad[0] else None
        return grad_given, grad_z, grad_gate, grad_coefficient, grad_up, None, None, None, None


def _hidden(z_TS: Tensor, coefficient_QS: Tensor | None, gate_TE: Tensor) -> Tensor:
    """``z C^T`` by expert, a tensor of its own."""
    hidden_TQ = z_TS.clone() if coefficient_QS is None else product(z_TS, coefficient_QS)
    return hidden_TQ.view(*gate_TE.shape, hidden_TQ.shape[-1] // gate_TE.shape[-1])


def _up_gradient(grad_TO: Tensor, gated_TQ: Tensor) -> Tensor:
    """The gradient of U; a processor takes two thirds of the time for it the other way round."""
    if multiplies_into_float32(grad_TO):
        return weight_gradient(grad_TO, gated_TQ)
    return weight_gradient(gated_TQ, grad_TO).T


def _frozen(x_TI: Tensor, base_layer: nn.Linear) -> Tensor:
    return product(x_TI, base_layer.weight, base_layer.bias)


def _add_update(y_TO: Tensor, gated_TER: Tensor, gate_TE: Tensor, up_OQ: Tensor, gather: bool) -> Tensor:
    if gather:
        return add_gathered(y_TO, gated_TER, gate_TE, up_OQ)
    return add_product(y_TO, gated_TER.flatten(-2), up_OQ)


def fused_mixture(
    base_layer: nn.Module,
    x: Tensor,
    factors: Factors,
    *,
    dropout: float,
    router_EI: Tensor | None,
    choose: Choose,
    hand_on: Callable[[Tensor | None, Seen | None], Tensor],
    scaling: float,
    top_k: int,
) -> Tensor:
    """The adapted layer's whole output.

    Args:
        base_layer: The frozen layer, for which `can_fuse` holds.
        x: Input, shape ``(..., I)``.
        factors: The experts; in training they may be in float32 for an x in half precision.
        dropout: Rate of the dropout on the input of the down-projection; the router's input has none.
        router_EI: Router weight, float32; None where another linear of the block has the router.
        choose: What the router chooses.
        hand_on: The gates, of shape ``(T, E)``, once other linears have them too; given None where no router is here.
        scaling: ``alpha / r``.
        top_k: Experts kept for a token.
    """
    x_TI = x.reshape(-1, x.shape[-1])
    down_SI, coefficient_QS, up_OQ = factors
    plain = base_layer if _is_plain(base_layer) else None
    if plain is not None and x.dtype == torch.float32 and not dropout and not torch.is_grad_enabled():
        # At one token a step, as in decoding, it is the number of calls that counts.
        choice = None if router_EI is None else choose((product(x_TI, router_EI),), differentiable=False)
        gate_TE = hand_on(None, None) if choice is None else hand_on(choice.gate_TE, choice.seen)
        gated_TER = plain_steps.gate_(_hidden(product(x_TI, down_SI), coefficient_QS, gate_TE), gate_TE, scaling)
        gather = gathering_pays(gate_TE, up_OQ, top_k)
        y_TO = _add_update(_frozen(x_TI, plain), gated_TER, gate_TE, up_OQ, gather)
        return y_TO.view(*x.shape[:-1], len(up_OQ))
    has_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, down_SI, router_EI))
    weights = rounded(x_TI, factors, router_EI)
    with torch.no_grad():
        dropped_TI, drawn = drop(x_TI, dropout) if dropout else (x_TI, None)
    followed_TI, z_TS, *chosen = _Project.apply(
        x_TI, down_SI, router_EI, dropped_TI, drawn, weights, partial(choose, differentiable=has_gradient)
    )
    del dropped_TI  # the frozen product is where memory is needed most
    gate_TE = hand_on(*chosen)
    # What comes out of a function asks for a gradient even where the input itself does not, as in the first layer.
    given_TI = followed_TI if x.requires_grad else x_TI
    y_TO = _Update.apply(
        base_layer(given_TI) if plain is None else given_TI,
        z_TS,
        gate_TE,
        coefficient_QS,
        up_OQ,
        weights,
        plain,
        scaling if drawn is None else scaling * drawn.outer,
        plain is not None and gathering_pays(gate_TE, up_OQ, top_k),
    )
    return y_TO.view(*x.shape[:-1], len(up_OQ))
