"""Weights of a run's model that are not those of its base model's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from malora_cli.modeling.quantised import dequantised, quantised_linears


def own_weights(model: PeftModel, *, dora: bool) -> Mapping[str, Callable[[], Tensor]]:
    """The weights by the names of their linears: what 4 or 8 bits stand for, or those that DoRA makes.

    Args:
        model: The wrapped model.
        dora: Whether its adapter is DoRA, which PEFT merges.
    """
    if not dora:
        return {name: partial(dequantised, linear) for name, linear in quantised_linears(model).items()}
    layers = {name: module for name, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer)}
    return {name: partial(_merged, layer) for name, layer in layers.items()}


@torch.no_grad()
def _merged(layer: LoraLayer) -> Tensor:
    """The weight of a linear with its adapter in it, by PEFT, in float32; the linear is as it was afterwards."""
    linear = layer.get_base_layer()
    own = linear.weight.data
    try:
        linear.weight.data = own.float()  # so that it is rounded once, when it is written
        layer.merge()
        merged = linear.weight.data.cpu().clone()
        layer.unmerge()
    finally:
        linear.weight.data = own
    return merged
