"""The models of a benchmark: one base, its weights shared by all, and a method around each copy."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from malora_cli.adapters.methods import METHODS
from malora_cli.adapters.targets import PAPER_TARGETS
from malora_cli.bench.loop import wrap_in_loops
from malora_cli.bench.workload import FROZEN, LOOP, SHAPES, STOCK, Workload
from malora_cli.errors import ModelError
from malora_cli.modeling import load_base, resolve_base, wrap

#: The head of a model of a shape is small, so that the figures are those of its layers.
_VOCABULARY = 512


def base_of(workload: Workload) -> PreTrainedModel:
    """The frozen model, with its weights on the device.

    Raises:
        ModelError: It cannot be had.
    """
    if workload.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("no CUDA GPU found", where="--device cuda", fix="Use --device cpu.")
    workload.check()
    if (settings := workload.settings) is not None:
        return load_base(resolve_base(settings), settings, quick=False).to(workload.device)
    config = LlamaConfig(vocab_size=_VOCABULARY, num_hidden_layers=workload.layers, **SHAPES[workload.shape])
    with torch.random.fork_rng(devices=[]), torch.device(workload.device):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, workload.dtype))


def build(name: str, base: PreTrainedModel, workload: Workload) -> nn.Module:
    """One row's model, in training mode: a copy of the base that shares its weights, with the method around it."""
    shared = {id(weight): weight for weight in base.parameters()}
    model: Any = copy.deepcopy(base, shared).requires_grad_(False).train()
    torch.manual_seed(0)
    if name == FROZEN:
        model.enable_input_require_grads()  # or there would be no backward pass
        return model
    if name == LOOP:
        targets = PAPER_TARGETS[model.config.model_type]
        if isinstance(targets, str):
            raise ModelError(f"loops are not written for a '{model.config.model_type}' model", where=LOOP)
        wrap_in_loops(model, targets, dropout=0.05 if workload.dropout is None else workload.dropout)
        return model
    changed = {} if workload.dropout is None else {"lora_dropout": workload.dropout}
    return wrap(model, METHODS[name.removeprefix("peft-")](**changed), quick=name not in STOCK).train()
