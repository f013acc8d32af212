"""The mixtures a token and an expert at a time, in plain float32, straight from the equations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from malora_cli.adapters.config import HydraLoraConfig, MaloraConfig, MixtureConfig
from malora_cli.adapters.dropout import draw_kept


class Routed(NamedTuple):
    """What one router says of some tokens."""

    gates: list[dict[int, Tensor]]  # of each token, by expert
    balance: Tensor  # over the real tokens


def expert(config: MixtureConfig, part: Mapping[str, Tensor], t: int) -> tuple[Tensor, Tensor]:
    """A_t and B_t of expert t."""
    r = config.r
    rows = slice(t * r, (t + 1) * r)
    if isinstance(config, HydraLoraConfig):
        return part["down"], part["up"][:, rows]
    if not isinstance(config, MaloraConfig):
        return part["down"][rows], part["up"][:, rows]
    if config.subspace == "up":
        return part["down"][rows], part["up"] @ part["coefficient"][:, rows]
    own = config.subspace_rank // config.experts
    subspace = part["down"][t * own : (t + 1) * own] if config.subspace == "own" else part["down"]
    return part["coefficient"][rows] @ subspace, part["up"][:, rows]


def route(config: MixtureConfig, router_EI: Tensor, x_TI: Tensor, mask_T: Tensor) -> Routed:
    """Eq. 4 and the Switch loss."""
    experts = range(config.experts)
    gates, probabilities, assigned = [], [], [0] * config.experts
    for x_I, real in zip(x_TI, mask_T, strict=True):
        exponents = [(router_EI[t] * x_I).sum().exp() for t in experts]
        p = [exponent / sum(exponents) for exponent in exponents]
        best = sorted(experts, key=lambda t: -p[t].item())[: config.top_k]
        norm = sum(p[t] for t in best) if config.renormalize and config.top_k < config.experts else 1.0
        gates.append({t: p[t] / norm for t in best})
        if real:
            probabilities.append(torch.stack(p))
            for t in best:
                assigned[t] += 1
    mean_E = torch.stack(probabilities).mean(0)
    share_E = torch.tensor(assigned) / sum(assigned)
    return Routed(gates, config.experts * (share_E * mean_E).sum())


def update(config: MixtureConfig, part: Mapping[str, Tensor], x_TI: Tensor, gates: list[dict[int, Tensor]]) -> Tensor:
    """Eq. 5-7 without the frozen product."""
    pairs = [expert(config, part, t) for t in range(config.experts)]
    rows = []
    for x_I, gate in zip(x_TI, gates, strict=True):
        terms = [g * (pairs[t][1] @ (pairs[t][0] @ x_I)) for t, g in gate.items()]
        rows.append(config.lora_alpha / config.r * torch.stack(terms).sum(0))
    return torch.stack(rows)


class PlainDropout(nn.Module):
    """A dropout by plain arithmetic, with the fused kernel's draw."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        kept, factor = draw_kept(x.flatten(0, -2), self.p)
        return x * kept.view_as(x) * factor
