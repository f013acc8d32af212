"""The models of a benchmark: one base, its weights shared by all, and a method around each copy."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from malora_cli.adapters.methods import METHODS
from malora_cli.adapters.targets import PAPER_TARGETS
from malora_cli.bench.loop import wrap_in_loops
from malora_cli.errors import ModelError, RecipeError
from malora_cli.modeling import load_base, resolve_base, wrap
from malora_cli.recipe import ModelSettings
from malora_cli.registry import unknown

#: Rows that are no method of ours: the frozen model, and what other toolkits do. Of these, `PEER` is what every row is
#: compared with. They run as their users run them, on linears that nothing has quickened.
FROZEN, PEER, PEFT_DORA, LOOP = "frozen", "peft-lora", "peft-dora", "loop-molora"
_STOCK = (FROZEN, PEER, PEFT_DORA, LOOP)
#: Sizes of well-known models, for random weights: what a layer costs does not depend on what it has learned.
SHAPES: dict[str, dict[str, int]] = {
    "llama2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32},
    "llama3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
}
#: The head of a model of a shape is small, so that the figures are those of its layers.
_VOCABULARY = 512


@dataclass(frozen=True)
class Workload:
    """What is measured on.

    Args:
        model: Base model as in a recipe, or None.
        shape: Name of a shape in `SHAPES`, where there is no model.
        layers: Layers of a model of that shape.
        tokens: Tokens of one step.
        dtype: Of the frozen weights; bfloat16 computes under autocast, as training does.
        device: "cpu" or "cuda".
        dropout: Dropout of every method, over its own; None leaves each its own.
    """

    model: str | None = None
    shape: str = "llama2-7b"
    layers: int = 1
    tokens: int = 512
    dtype: str = "float32"
    device: str = "cpu"
    dropout: float | None = None

    def base(self) -> PreTrainedModel:
        """The frozen model, with its weights on the device.

        Raises:
            ModelError: It cannot be had.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ModelError("no CUDA GPU found", where="--device cuda", fix="Use --device cpu.")
        if self.model is not None:
            settings = ModelSettings(base=self.model, dtype=self.dtype)
            return load_base(resolve_base(settings), settings, quick=False).to(self.device)
        if self.shape not in SHAPES:
            raise ModelError(unknown("shape", self.shape, SHAPES), where="--shape")
        config = LlamaConfig(vocab_size=_VOCABULARY, num_hidden_layers=self.layers, **SHAPES[self.shape])
        with torch.random.fork_rng(devices=[]), torch.device(self.device):
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, self.dtype))


def check_rows(names: Sequence[str]) -> list[str]:
    """The rows asked for, or all of them; the peer is always among them.

    Raises:
        RecipeError: A name is no row.
    """
    known = [*_STOCK, *METHODS]
    for name in names:
        if name not in known:
            raise RecipeError(unknown("method", name, known), where="--methods")
    wanted = set(names) | {PEER} if names else known
    return [name for name in known if name in wanted]


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
    return wrap(model, METHODS[name.removeprefix("peft-")](**changed), quick=name not in _STOCK).train()
