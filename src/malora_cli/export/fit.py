"""The LoRA that comes nearest to a routed mixture on the tokens of some rows: least squares, in closed form.

With ``z = D x`` and ``h = C z``, and the gates g of every token repeated over their experts' ranks, the up-projection B
that minimises ``E |s U (g * h) - B z|^2 + lambda |B|^2`` is ``s U M (Z + lambda I)^-1`` with ``M = E (g * h) z^T`` and
``Z = E z z^T``. Both are small: nothing of the model's width is kept. Mean gates are one choice of B among all that
this looks through, so on the rows that it is fitted to, it is at least as near.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.routing import observed
from malora_cli.export.static import LowRank, StaticLora, routed_linears
from malora_cli.modeling.device import exact
from malora_cli.modeling.loss import example_nats

#: Candidates for lambda, in units of the mean eigenvalue of Z; the best on rows that were not fitted to is taken.
RIDGES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Moments:
    """M and Z of one linear, in float64 on the CPU, summed over tokens.

    Args:
        gated_QS: M, the sum of ``(g * h) z^T``.
        plain_SS: Z, the sum of ``z z^T``.
        tokens: How many, or what they weigh.
    """

    gated_QS: Tensor
    plain_SS: Tensor
    tokens: float

    @classmethod
    def of(cls, layer: MixtureLinear, adapter: str, x_TI: Tensor, gate_TE: Tensor) -> Moments:
        """The moments of some tokens."""
        down_SI, coefficient_QS, up_OQ = layer.factors(adapter)
        z_TS = exact(x_TI.flatten(0, -2).to(down_SI) @ down_SI.T)
        h_TQ = z_TS if coefficient_QS is None else z_TS @ exact(coefficient_QS).T
        gate_TE = exact(gate_TE.flatten(0, -2))
        gate_TQ = gate_TE.repeat_interleave(up_OQ.shape[1] // gate_TE.shape[1], dim=1)
        return cls(((gate_TQ * h_TQ).T @ z_TS).cpu(), (z_TS.T @ z_TS).cpu(), len(z_TS))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.gated_QS + other.gated_QS, self.plain_SS + other.plain_SS, self.tokens + other.tokens)

    def weighing(self, weight: float) -> Moments:
        """The same means, of tokens that weigh so much together."""
        factor = weight / self.tokens
        return Moments(self.gated_QS * factor, self.plain_SS * factor, weight)


@torch.no_grad()
def moments(model: PeftModel, batches: Iterable[Mapping[str, Any]]) -> dict[str, Moments]:
    """The moments of every routed linear over the tokens of some batches, as the routed model sees them."""
    layers, found = list(routed_linears(model).items()), dict[str, Moments]()

    def add(router: int, x_TI: Tensor, gate_TE: Tensor) -> None:
        name, layer = layers[router]
        seen = Moments.of(layer, model.active_adapter, x_TI, gate_TE)
        found[name] = found[name] + seen if name in found else seen

    with observed(model, add):
        example_nats(model, batches)
    return found


@torch.no_grad()
def fitted_lora(model: PeftModel, halves: Sequence[Mapping[str, Moments]]) -> StaticLora:
    """The nearest LoRA; lambda is chosen on the second half of the rows, and both are then fitted to.

    Args:
        model: The wrapped model.
        halves: Moments of two halves of the rows.
    """
    found = {}
    for name, layer in routed_linears(model).items():
        factors = layer.factors(model.active_adapter)
        up_OQ = factors.up_OQ.detach().cpu().double() * layer.malora_config[model.active_adapter].scaling
        first, second = (half[name] for half in halves)
        ridge = min(RIDGES, key=lambda ridge: _distance(up_OQ, _solved(up_OQ, first, ridge), second))
        up_OS = _solved(up_OQ, first + second, ridge)
        found[name] = LowRank(factors.down_SI.detach().float().cpu().contiguous(), up_OS.float().contiguous())
    return found


def _solved(up_OQ: Tensor, seen: Moments, ridge: float) -> Tensor:
    """``s U M (Z + lambda I)^-1``; without lambda by the pseudoinverse, for Z may be singular."""
    plain_SS = seen.plain_SS
    target_OS = up_OQ @ seen.gated_QS
    if ridge == 0:
        return target_OS @ torch.linalg.pinv(plain_SS, hermitian=True)
    size = len(plain_SS)
    added = ridge * plain_SS.trace() / size + torch.finfo(plain_SS.dtype).tiny
    return torch.linalg.solve(plain_SS + added * torch.eye(size, dtype=plain_SS.dtype), target_OS, left=False)


def _distance(up_OQ: Tensor, up_OS: Tensor, seen: Moments) -> float:
    """The squared distance to the routed mixture, less a part that is the same for every B."""
    return float(((up_OS @ seen.plain_SS - 2 * up_OQ @ seen.gated_QS) * up_OS).sum())
