"""The weights of a linear in the format of its input, brought there by one call for all of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from malora_cli.adapters.kernel import Factors
from malora_cli.adapters.logits import gradient_dtype, widens


class Rounded(NamedTuple):
    """What the products of a linear take, without a history."""

    down_SI: Tensor
    coefficient_QS: Tensor | None
    up_OQ: Tensor
    router_EI: Tensor | None  # in its `gradient_dtype`; None where there is no router
    both_MI: Tensor | None  # where a product `widens`: D, and below it the router's two `logits.halves`


@torch.no_grad()
def rounded(x_TI: Tensor, factors: Factors, router_EI: Tensor | None) -> Rounded:
    """The weights as they are, where they have the format already.

    Args:
        x_TI: Input of the linear.
        factors: The experts, in its format or in float32.
        router_EI: Router weight W_g, float32.
    """
    if x_TI.dtype == torch.float32:
        return Rounded(*factors, router_EI, None)
    sources: list[Tensor] = []
    copies: list[Tensor] = []

    def brought(weight: Tensor) -> Tensor:
        if weight.dtype == x_TI.dtype:
            return weight
        sources.append(weight)
        copies.append(torch.empty_like(weight, dtype=x_TI.dtype))
        return copies[-1]

    down_SI, coefficient_QS, up_OQ = factors
    high_EI = low_EI = both_MI = None
    if router_EI is not None and widens(x_TI):
        sizes = [len(down_SI), len(router_EI), len(router_EI)]
        both_MI = x_TI.new_empty(sum(sizes), x_TI.shape[1])
        down_SI, high_EI, low_EI = both_MI.split(sizes)
        sources += [factors.down_SI, router_EI]
        copies += [down_SI, high_EI]
    else:
        down_SI = brought(down_SI)
        high_EI = None if router_EI is None else brought(router_EI)
    coefficient_QS = None if coefficient_QS is None else brought(coefficient_QS)
    up_OQ = brought(up_OQ)
    if copies:
        torch._foreach_copy_(copies, sources)
    if router_EI is not None and high_EI is not None and low_EI is not None:
        torch.sub(router_EI, high_EI, out=low_EI)
    router = high_EI if gradient_dtype(x_TI) == x_TI.dtype else router_EI
    return Rounded(down_SI, coefficient_QS, up_OQ, router, both_MI)
