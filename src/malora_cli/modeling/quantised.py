"""Base models in 4 or 8 bits, by bitsandbytes."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from peft.utils.integrations import dequantize_bnb_weight
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from malora_cli.errors import ModelError
from malora_cli.modeling.device import dtype_of
from malora_cli.recipe import ModelSettings


def quantisation(settings: ModelSettings) -> dict[str, Any]:
    """What to tell transformers; nothing where the base is not quantised.

    Raises:
        ModelError: bitsandbytes is not there, or cannot do it here.
    """
    if settings.quantise is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            "a base in 4 or 8 bits needs the package bitsandbytes, which is not installed",
            where="model.quantise",
            fix="Install it: pip install bitsandbytes",
        )
    # NF4 with quantised constants, as in QLoRA (Dettmers et al., arXiv 2305.14314); LLM.int8() (arXiv 2208.07339).
    config = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype_of(settings)),
        )
        if settings.quantise == "nf4"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    return {"quantization_config": config}


def keep_trainable(model: nn.Module) -> None:
    """Let a quantised base on a CPU be evaluated between steps.

    On processors that multiply bfloat16, bitsandbytes repacks 4-bit weights at the first evaluation, for good, into a
    form that has no backward pass.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def values_in(parameter: nn.Parameter) -> int:
    """Weights that a parameter stands for: two a byte where it has been packed into 4 bits."""
    packed = type(parameter).__name__ == "Params4bit" and not parameter.is_floating_point()
    return 2 * parameter.numel() if packed else parameter.numel()


def quantised_linears(model: nn.Module) -> dict[str, nn.Module]:
    """The linears of a model that hold 4 or 8 bits, by their names in the base model, also where PEFT wraps them."""
    return {
        name.removeprefix("base_model.model.").removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if type(getattr(module, "weight", None)).__name__ in ("Params4bit", "Int8Params")
    }


@torch.no_grad()
def dequantised(linear: nn.Module) -> Tensor:
    """The weight that a quantised linear multiplies by, in float32 on the CPU, as the base model's files have it."""
    weight = dequantize_bnb_weight(linear.weight, state=getattr(linear, "state", None)).detach().float().cpu()
    return weight.T if getattr(linear, "source_cls", None) is Conv1D else weight  # which stands the other way in files
