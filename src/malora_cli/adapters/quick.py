"""Linears and dropouts of other people's modules, the base model's and PEFT's, with the faster ways to compute them.

What is computed stays the same but for rounding and the random numbers drawn. See ``product`` and ``dropout``.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from malora_cli.adapters.dropout import draw_kept
from malora_cli.adapters.product import prefers_onednn, product


class QuickLinear(nn.Linear):
    """A float32 linear that takes the faster product, forward and backward, outside of autocast."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as torch names it
        """``x W^T + b``."""
        if torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        y: Tensor = _Linear.apply(input.reshape(-1, self.in_features), self.weight, self.bias)
        return y.view(*input.shape[:-1], self.out_features)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        # A frozen weight needs no input kept: most of what a plain linear would hold for the backward pass.
        ctx.save_for_backward(x_TI if ctx.needs_input_grad[1] else None, weight_OI)
        return product(x_TI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_TI, weight_OI = ctx.saved_tensors
        for_input, for_weight, for_bias = ctx.needs_input_grad
        return (
            product(grad_TO, weight_OI.T) if for_input else None,
            product(grad_TO.T, x_TI.T) if for_weight else None,
            grad_TO.sum(0) if for_bias else None,
        )


class QuickDropout(nn.Dropout):
    """A dropout on a CPU that draws four entries at a time and keeps a byte of each for the backward pass."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as torch names it
        """``x * kept / (1 - p)`` in training."""
        if not self.training or input.device.type != "cpu":
            return super().forward(input)
        kept, factor = draw_kept(input, self.p)
        y: Tensor = _Dropout.apply(input, kept, factor)
        return y


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        ctx.save_for_backward(kept)
        return (x * kept).mul_(factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(ctx.factor), None, None


def quicken(model: nn.Module) -> None:
    """Let a model's float32 linears on a CPU, and the dropouts of PEFT's LoRA, take the faster way, in place.

    Linears stay as they are where PyTorch's own product is as fast.
    """
    for module in model.modules():
        if type(module) is nn.Linear and _is_slow(module.weight):
            module.__class__ = QuickLinear
        elif isinstance(module, LoraLayer):
            for dropout in module.lora_dropout.values():
                if type(dropout) is nn.Dropout:
                    dropout.__class__ = QuickDropout


def _is_slow(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and prefers_onednn()
