"""Every routed preset at tiny sizes."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import nn

from malora_cli.adapters.config import MixtureConfig
from malora_cli.adapters.methods import METHODS
from malora_cli.adapters.methods._base import AdapterSettings
from malora_cli.adapters.methods._mixture import MixtureSettings
from malora_cli.modeling import wrap
from tiny_models import randomise, tiny

#: Far above what is sensible, so that a wrong balance gradient shows.
FACTOR = 0.7
ROUTED = [name for name in METHODS if issubclass(METHODS[name], MixtureSettings)]

_SIZES = {"r": 3, "num_experts": 4, "top_k": 2, "lora_alpha": 7.5, "lora_dropout": 0.0, "balance_factor": FACTOR}
_OWN: dict[str, dict[str, Any]] = {"hydralora": {"top_k": 4}, "mola": {"num_experts": (3, 4)}}


def settings(method: str, **changes: Any) -> AdapterSettings:
    """A preset's settings, small; what it has no setting for is left out."""
    wanted = {**_SIZES, "subspace_rank": 8, **_OWN.get(method, {}), **changes}
    return METHODS[method](**{name: value for name, value in wanted.items() if name in METHODS[method].model_fields})


def config(method: str, layer: int = 0, **changes: Any) -> MixtureConfig:
    """The configuration of a preset for one of two layers."""
    made = settings(method, **changes).peft_config(["linear"])
    assert isinstance(made, MixtureConfig)
    return made.of_layer(layer, 2)


def routed(method: str, base: nn.Module | None = None, *, seed: int = 0, **changes: Any) -> PeftModel:
    """A tiny model with a preset's adapter, in training, all of its weights random."""
    torch.manual_seed(0)
    model = wrap(tiny("llama") if base is None else base, settings(method, **changes))  # type: ignore[arg-type]
    randomise(model, seed=seed)
    return model.train()
