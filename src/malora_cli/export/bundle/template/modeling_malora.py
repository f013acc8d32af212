"""A causal language model whose linears carry routed low-rank experts.

Every token takes the experts that a router chooses for it: ``y = W x + b + s * sum_t g_t(x) U_t C_t D x``. This file
is loaded with ``trust_remote_code=True`` and needs nothing but torch and transformers. It is for inference: there is
no dropout and no balance loss.

Shape suffixes: T tokens (any leading dimensions), I in_features, O out_features, E experts, S rank of the
down-projection, Q ranks of all experts side by side.

Source: MALoRA (arXiv 2410.22782), Eq. 4-7.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM, LlamaModel
from transformers.pytorch_utils import Conv1D

from .configuration_malora import MaloraLlamaConfig


def route(x_TI: Tensor, router_EI: Tensor, *, top_k: int, renormalize: bool) -> Tensor:
    """Gates of every token, 0 outside its top k; in float32, for a rounded router takes other experts."""
    with torch.autocast(x_TI.device.type, enabled=False):
        logits_TE = F.linear(x_TI.float(), router_EI.float())
    if top_k == len(router_EI):
        return logits_TE.softmax(-1)
    if renormalize:
        kept_TK, expert_TK = logits_TE.topk(top_k, -1)
        kept_TK = kept_TK.softmax(-1)
    else:
        kept_TK, expert_TK = logits_TE.softmax(-1).topk(top_k, -1)
    return torch.zeros_like(logits_TE).scatter(-1, expert_TK, kept_TK)


def _empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    """A parameter where ``like`` is; of zeros, so that without its weights there is no update."""
    return nn.Parameter(torch.zeros(shape, dtype=dtype or like.dtype, device=like.device))


class SharedGates:
    """The gates of the linears that stand in one module, which has the router.

    The linear that is called first routes by its own input; the others take its gates. They are kept while the module
    is called, and no longer.
    """

    def __init__(self, module: Any, experts: int, in_features: int) -> None:
        like = next(module.parameters())
        module.register_parameter("malora_router", _empty(like, experts, in_features, dtype=torch.float32))
        self.module = module
        self.gate_TE: Tensor | None = None
        module.register_forward_pre_hook(self.forget)
        module.register_forward_hook(self.forget, always_call=True)

    def forget(self, *_: Any) -> None:
        """A call of the module begins or ends."""
        self.gate_TE = None

    def of(self, linear: MaloraLinear, x_TI: Tensor) -> Tensor:
        """The gates of a linear of the module, for its input."""
        if self.gate_TE is None:
            self.gate_TE = linear.gates(x_TI, self.module.malora_router)
        return self.gate_TE


class MaloraLinear(nn.Module):
    """A linear with routed experts; its own weight and bias keep their names.

    It is no ``nn.Linear``, which inference servers replace by layers of their own.

    Args:
        linear: What it stands for.
        sizes: Its group of the configuration.
        renormalize: Divide the kept gates by their sum.
        shared: The gates that it shares with others; None where it has a router of its own.
    """

    weight: Tensor
    bias: Tensor | None
    malora_coefficient: Tensor | None
    malora_router: Tensor

    def __init__(self, linear: Any, sizes: dict[str, Any], renormalize: bool, shared: SharedGates | None) -> None:
        super().__init__()
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.transposed = isinstance(linear, Conv1D)  # as GPT-2 keeps its weights
        rows, columns = self.weight.shape
        self.in_features, self.out_features = (rows, columns) if self.transposed else (columns, rows)
        self.experts, self.top_k, self.scaling = sizes["experts"], sizes["top_k"], sizes["scaling"]
        self.renormalize, self.shared = renormalize, shared
        ranks, subspace = self.experts * sizes["rank"], sizes["subspace_rank"]
        coefficient = _empty(self.weight, ranks, subspace) if subspace else None
        self.malora_down = _empty(self.weight, subspace or ranks, self.in_features)
        self.register_parameter("malora_coefficient", coefficient)
        self.malora_up = _empty(self.weight, self.out_features, ranks)
        if shared is None:
            self.malora_router = _empty(self.weight, self.experts, self.in_features, dtype=torch.float32)

    def gates(self, x_TI: Tensor, router_EI: Tensor | None = None) -> Tensor:
        """Gates of every token by its own router, or by another."""
        router_EI = self.malora_router if router_EI is None else router_EI
        return route(x_TI, router_EI, top_k=self.top_k, renormalize=self.renormalize)

    def forward(self, x_TI: Tensor) -> Tensor:
        """The linear's output plus the update of the experts that each token takes."""
        gate_TE = self.gates(x_TI) if self.shared is None else self.shared.of(self, x_TI)
        hidden_TQ = F.linear(x_TI, self.malora_down)
        if self.malora_coefficient is not None:
            hidden_TQ = F.linear(hidden_TQ, self.malora_coefficient)
        scaled_TE1 = (gate_TE * self.scaling).to(hidden_TQ.dtype).unsqueeze(-1)
        gated_TQ = (hidden_TQ.unflatten(-1, (self.experts, -1)) * scaled_TE1).flatten(-2)
        weight_OI = self.weight.T if self.transposed else self.weight
        return F.linear(x_TI, weight_OI, self.bias) + F.linear(gated_TQ, self.malora_up)

    def extra_repr(self) -> str:
        """The sizes, for ``print(model)``."""
        sizes = ("in_features", "out_features", "experts", "top_k")
        return ", ".join(f"{name}={getattr(self, name)}" for name in sizes)


def add_experts(model: nn.Module, malora: dict[str, Any] | None) -> None:
    """Put `MaloraLinear` in the place of the linears that a configuration names."""
    if malora is None:
        return
    blocks = {name: SharedGates(model.get_submodule(name), **sizes) for name, sizes in malora["blocks"].items()}
    for sizes in malora["groups"]:
        for name in sizes["linears"]:
            parent, _, own = name.rpartition(".")
            module = model.get_submodule(parent)
            linear = MaloraLinear(getattr(module, own), sizes, malora["renormalize"], blocks.get(parent))
            setattr(module, own, linear)


def kept_in_float32(model: Any) -> set[str]:
    """What stays float32 in a model of half precision: what the base model keeps so, and routers."""
    return {*(model._keep_in_fp32_modules_strict or ()), "malora_router"}


class MaloraLlamaModel(LlamaModel):
    """The base model with experts in its linears."""

    config_class = MaloraLlamaConfig
    _keep_in_fp32_modules_strict = kept_in_float32(LlamaModel)

    def __init__(self, config: MaloraLlamaConfig) -> None:
        super().__init__(config)
        add_experts(self, config.malora)


class MaloraLlamaForCausalLM(LlamaForCausalLM):
    """The language model on top of it."""

    config_class = MaloraLlamaConfig
    _keep_in_fp32_modules_strict = kept_in_float32(LlamaForCausalLM)

    def __init__(self, config: MaloraLlamaConfig) -> None:
        super().__init__(config)
        setattr(self, self.base_model_prefix, MaloraLlamaModel(config))
        self.post_init()  # again: embeddings are tied to those of this model
