"""Weights of a run's model that are not those of its base model's files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from malora_cli.modeling.quantised import dequantised, quantised_linears


@contextmanager
def own_weights(model: PeftModel, *, dora: bool) -> Iterator[Mapping[str, Callable[[], Tensor]]]:
    """The weights by the names of their linears: what 4 or 8 bits stand for, or those that DoRA makes.

    Args:
        model: The wrapped model; inside the block one with DoRA is merged.
        dora: Whether its adapter is DoRA, which PEFT merges.
    """
    if not dora:
        yield {name: partial(dequantised, linear) for name, linear in quantised_linears(model).items()}
        return
    layers = {name: module for name, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer)}
    model.merge_adapter()
    try:
        yield {name: partial(_weight, layer) for name, layer in layers.items()}
    finally:
        model.unmerge_adapter()


def _weight(layer: LoraLayer) -> Tensor:
    weight = layer.get_base_layer().weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach().float().cpu()
