"""MoLoRA as other toolkits compute it: a loop over experts, each on the tokens that chose it.

A peer to measure against: the reference code of most mixtures has a loop of this kind. Nothing else uses it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LoopMoloraLinear(nn.Module):
    """A frozen linear with experts that are small linears of their own.

    Args:
        base_layer: The frozen linear.
        num_experts: Experts.
        top_k: Experts active for a token.
        r: Rank of an expert.
        lora_alpha: The update is scaled by ``lora_alpha / r``.
        dropout: On the experts' input.
    """

    def __init__(
        self, base_layer: nn.Linear, *, num_experts: int, top_k: int, r: int, lora_alpha: float, dropout: float
    ) -> None:
        super().__init__()
        self.base_layer, self.top_k, self.scaling = base_layer, top_k, lora_alpha / r
        inner, outer, device = base_layer.in_features, base_layer.out_features, base_layer.weight.device
        self.dropout = nn.Dropout(dropout)
        self.router = nn.Linear(inner, num_experts, bias=False, device=device)
        downs = [nn.Linear(inner, r, bias=False, device=device) for _ in range(num_experts)]
        ups = [nn.Linear(r, outer, bias=False, device=device) for _ in range(num_experts)]
        for down, up in zip(downs, ups, strict=True):
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            nn.init.zeros_(up.weight)
        self.down, self.up = nn.ModuleList(downs), nn.ModuleList(ups)

    def forward(self, x: Tensor) -> Tensor:
        """The frozen output plus every expert's update of its own tokens."""
        y: Tensor = self.base_layer(x)
        x_TI = x.reshape(-1, x.shape[-1])
        if not torch.is_autocast_enabled(x.device.type):
            x_TI = x_TI.to(self.router.weight.dtype)
        kept_TK, expert_TK = self.router(x_TI).float().softmax(-1).topk(self.top_k, dim=-1)
        kept_TK = kept_TK / kept_TK.sum(-1, keepdim=True)
        x_TI = self.dropout(x_TI)
        update_TO = torch.zeros(len(x_TI), y.shape[-1], dtype=y.dtype, device=y.device)
        for expert, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            token_M, slot_M = (expert_TK == expert).nonzero(as_tuple=True)
            update_MO = up(down(x_TI[token_M])) * (kept_TK[token_M, slot_M] * self.scaling).unsqueeze(-1)
            update_TO = update_TO.index_add(0, token_M, update_MO.to(update_TO.dtype))
        return y + update_TO.view_as(y)


def wrap_in_loops(model: nn.Module, targets: list[str], *, dropout: float) -> None:
    """Put loops of the paper's MoLoRA (8 experts of rank 8, top 2, alpha 16) on the linears of these names."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and any(f".{name}".endswith(f".{target}") for target in targets):
            parent = model.get_submodule(name.rpartition(".")[0])
            looped = LoopMoloraLinear(module, num_experts=8, top_k=2, r=8, lora_alpha=16, dropout=dropout)
            setattr(parent, name.rpartition(".")[2], looped)
