"""A router's logits, in float32 whatever the experts are computed in.

A router in bfloat16 picks other experts than the one that is trained: its logits differ in the third digit. Shape
suffixes as in ``kernel``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from malora_cli.adapters.precision import float32_products
from malora_cli.adapters.product import add_product, product

#: The formats that a GPU multiplies several times as fast as float32.
HALF = (torch.bfloat16, torch.float16)
#: PyTorch multiplies half precision into float32 on NVIDIA's GPUs alone.
_WIDENS = torch.version.hip is None


class _RouterLogits(torch.autograd.Function):
    """The logits of an input in half precision, which alone is kept for the backward pass.

    Autograd would keep the float32 copy of it: twice the size, and one for each of q, k and v, though they share x.
    """

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, router_EI: Tensor) -> Tensor:
        ctx.save_for_backward(x_TI, router_EI)
        return sum_of(terms_of(x_TI, router_EI))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_TI, router_EI = ctx.saved_tensors
        for_input, for_router = ctx.needs_input_grad
        grad_TE = grad_TE.to(gradient_dtype(x_TI))
        return (
            input_gradient(grad_TE, router_EI) if for_input else None,
            router_gradient(grad_TE, x_TI) if for_router else None,
        )


def router_logits(x_TI: Tensor, router_EI: Tensor, *, training: bool = True) -> Tensor:
    """``W_g x`` in float32 whatever the autocast dtype, and whatever float32 products are rounded to elsewhere.

    Args:
        x_TI: Input of the adapted linear, before any dropout.
        router_EI: Router weight W_g.
        training: Whether the layer trains; the same product is taken then, with gradients and without, for a
            checkpoint computes it in both ways.
    """
    if x_TI.dtype in HALF and training:
        logits_TE: Tensor = _RouterLogits.apply(x_TI.reshape(-1, x_TI.shape[-1]), router_EI)
        return logits_TE.view(*x_TI.shape[:-1], len(router_EI))
    with float32_products(x_TI.device.type):
        return F.linear(x_TI.float(), router_EI.float())


def terms_of(x_TI: Tensor, router_EI: Tensor, halves_2EI: Tensor | None = None) -> tuple[Tensor, ...]:
    """One or two tensors in float32 whose sum is ``W_g x``, without a history, for the inside of autograd functions.

    Where a product `widens`, it is taken of the two `halves` of the router: no copy of x is made. For 4,096 inputs the
    worst logit is off by 6e-6, where a product in float32 is by 1e-6 and one in bfloat16 by 1e-2.

    Args:
        x_TI: Input of the router.
        router_EI: Router weight W_g.
        halves_2EI: Of the router, where they have been made.
    """
    if widens(x_TI):
        halves_2EI = halves(router_EI, x_TI.dtype) if halves_2EI is None else halves_2EI
        return torch.mm(x_TI, halves_2EI.T, out_dtype=torch.float32).split(len(router_EI), dim=-1)
    with float32_products(x_TI.device.type):
        return (product(x_TI.float(), router_EI.float()),)


def sum_of(terms_TE: Sequence[Tensor]) -> Tensor:
    """The logits whose terms these are."""
    return terms_TE[0] if len(terms_TE) == 1 else terms_TE[0] + terms_TE[1]


def widens(x: Tensor) -> bool:
    """Whether a product of this tensor, which is in half precision then, may have its result in float32 at no cost."""
    return x.dtype in HALF and multiplies_into_float32(x)


def multiplies_into_float32(x: Tensor) -> bool:
    """Whether PyTorch has a product of half precision with a result in float32 where this tensor lies."""
    return x.is_cuda and _WIDENS


def halves(weight_EI: Tensor, dtype: torch.dtype) -> Tensor:
    """A float32 matrix as the sum of two in half precision: itself, rounded, and below that what was left over.

    Args:
        weight_EI: The matrix; no history is kept of it.
        dtype: The number format of the two.

    Returns:
        Shape ``(2 E, I)``.
    """
    halves_2EI = torch.empty(2 * len(weight_EI), weight_EI.shape[1], dtype=dtype, device=weight_EI.device)
    high_EI, low_EI = halves_2EI.split(len(weight_EI))
    high_EI.copy_(weight_EI)
    torch.sub(weight_EI, high_EI, out=low_EI)
    return halves_2EI


def gradient_dtype(x: Tensor) -> torch.dtype:
    """What the gradients of a router are multiplied in.

    In bfloat16 they are rounded as those of the experts beside it are: which expert is chosen is no question there, and
    copies of x and of its gradient in float32 would be most of what a GPU moves. In float16 they stay float32, for the
    pull of the balance loss on a token may be smaller than that holds.
    """
    return x.dtype if x.dtype == torch.bfloat16 else torch.float32


def add_gradient(grad_TI: Tensor, grad_TE: Tensor, router_EI: Tensor) -> Tensor:
    """The gradient of a router's input added in place to one that is there already.

    Args:
        grad_TI: Is added to; of the input's dtype.
        grad_TE: Gradient of the logits, in the input's `gradient_dtype`, as below.
        router_EI: Router weight W_g.
    """
    if grad_TI.dtype == grad_TE.dtype:
        return add_product(grad_TI, grad_TE, router_EI.to(grad_TE.dtype).T)
    return grad_TI.add_(input_gradient(grad_TE, router_EI))


def input_gradient(grad_TE: Tensor, router_EI: Tensor) -> Tensor:
    """The gradient of a router's input, in the dtype of ``grad_TE``."""
    with float32_products(grad_TE.device.type):
        return product(grad_TE, router_EI.to(grad_TE.dtype).T)


def router_gradient(grad_TE: Tensor, x_TI: Tensor) -> Tensor:
    """The gradient of a router's weight, in the dtype of ``grad_TE`` or in float32."""
    with float32_products(x_TI.device.type):
        return weight_gradient(grad_TE, x_TI.to(grad_TE.dtype))


def weight_gradient(grad_TM: Tensor, x_TN: Tensor) -> Tensor:
    """``grad^T x``, the gradient of a weight; a GPU gives that of half precision in float32, as the weights are.

    Autograd would bring it to the weight's format anyhow, by one more call and from rounded sums.
    """
    if widens(x_TN):
        return torch.mm(grad_TM.T, x_TN, out_dtype=torch.float32)
    return product(grad_TM.T, x_TN.T)
