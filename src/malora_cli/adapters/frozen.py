"""Linears of the base model that stay frozen, multiplied by the faster library. See ``product``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from malora_cli.adapters.product import prefers_onednn, product


class FrozenLinear(nn.Linear):
    """A linear that takes the faster product wherever its weight needs no gradient."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as torch names it
        """``x W^T + b``."""
        if self.weight.requires_grad or torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        y: Tensor = _Frozen.apply(input.flatten(0, -2), self.weight, self.bias)
        return y.view(*input.shape[:-1], -1)


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight_OI)
        return product(x_TI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor, None, None]:
        (weight_OI,) = ctx.saved_tensors
        return product(grad_TO, weight_OI.T), None, None


def quicken(model: nn.Module) -> None:
    """Let a model's float32 linears on a CPU take the faster product, in place, where there is one."""
    if not prefers_onednn():
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            module.__class__ = FrozenLinear
