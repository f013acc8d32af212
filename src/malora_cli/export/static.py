"""Static merges: a routed mixture with its gates held fixed is an ordinary LoRA, exactly.

``s * sum_t g_t U_t C_t D x = (s * sum_t g_t U_t C_t) D x``: a LoRA whose down-projection is D itself, of rank d for
MALoRA and N r for MoLoRA, without an SVD. Only the routing is approximated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.routing import routing_of
from malora_cli.errors import RunError


@dataclass(frozen=True)
class LowRank:
    """The update ``up_OS @ down_SI`` of one linear; float32 on the CPU, its scale is in ``up_OS``."""

    down_SI: Tensor
    up_OS: Tensor

    @property
    def rank(self) -> int:
        """S."""
        return len(self.down_SI)

    @property
    def energy(self) -> float:
        """Squared norm of the update."""
        up_SS, down_SS = self.up_OS.double().T @ self.up_OS.double(), self.down_SI.double() @ self.down_SI.double().T
        return float((up_SS * down_SS.T).sum())

    def padded(self, rank: int) -> LowRank:
        """The same update at a larger rank, with rows and columns of zeros."""
        more = rank - self.rank
        pad = nn.functional.pad
        return LowRank(pad(self.down_SI, (0, 0, 0, more)), pad(self.up_OS, (0, more)))

    def reduced(self, rank: int) -> tuple[LowRank, float]:
        """The best update of a lower rank, and the share of the squared norm that it leaves out.

        By QR of both factors and an SVD of the small core: nothing of the size of the linear is made.
        """
        if rank >= self.rank:
            return self, 0.0
        left_OS, right_SS = torch.linalg.qr(self.up_OS.double())
        left_IS, right_down_SS = torch.linalg.qr(self.down_SI.double().T)
        core = torch.linalg.svd(right_SS @ right_down_SS.T)
        energy = core.S.square()
        down = core.Vh[:rank] @ left_IS.T
        up = left_OS @ core.U[:, :rank] * core.S[:rank]
        left_out = float(energy[rank:].sum() / energy.sum()) if energy.sum() > 0 else 0.0
        return LowRank(down.float().contiguous(), up.float().contiguous()), left_out


#: The updates of a model's linears, by their names in the base model.
StaticLora = Mapping[str, LowRank]


def static_up(up_OQ: Tensor, coefficient_QS: Tensor | None, gate_E: Tensor, *, scaling: float) -> Tensor:
    """Collapse routed experts into one up-projection for fixed gates.

    Args:
        up_OQ: The experts' up-projections side by side, ``Q = experts * expert_rank`` columns.
        coefficient_QS: The experts' coefficients stacked; None where they are the identity.
        gate_E: Gates, dimensionless, shape ``(experts,)``.
        scaling: ``alpha / expert_rank``, dimensionless.

    Returns:
        Up-projection ``(out_features, S)``, dtype of ``up_OQ``.

    Source: MALoRA (arXiv 2410.22782), Eq. 5-7 with constant gates.
    """
    gate_Q = (gate_E * scaling).repeat_interleave(up_OQ.shape[1] // gate_E.shape[0])
    gated_OQ = up_OQ * gate_Q.to(up_OQ)
    return gated_OQ if coefficient_QS is None else gated_OQ @ coefficient_QS


@torch.no_grad()
def static_lora(model: PeftModel, gate_LE: Tensor) -> StaticLora:
    """The LoRA that a routed model is for fixed gates.

    Args:
        model: The wrapped model.
        gate_LE: Gates of every router, in the order of a tally's rows.
    """
    found = {}
    for (name, layer), gate_E in zip(routed_linears(model).items(), gate_LE, strict=True):
        factors, own = layer.factors(model.active_adapter), layer.malora_config[model.active_adapter]
        gates = gate_E[: own.experts].to(factors.up_OQ.device)
        up = static_up(factors.up_OQ, factors.coefficient_QS, gates, scaling=own.scaling)
        found[name] = LowRank(_plain(factors.down_SI), _plain(up))
    return found


@torch.no_grad()
def plain_lora(model: PeftModel) -> StaticLora:
    """The LoRA that a model carries already, as PEFT's own, with its scale in the up-projection."""
    found, adapter = {}, model.active_adapter
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            if adapter not in layer.lora_A:
                what = f"{name} is adapted, which is not a linear layer"
                raise RunError(what, where="--to", fix="Use --to adapter, which PEFT merges.")
            up = layer.lora_B[adapter].weight.float() * layer.scaling[adapter]
            found[name] = LowRank(_plain(layer.lora_A[adapter].weight), _plain(up))
    return found


def at_rank(lora: StaticLora, rank: int) -> tuple[StaticLora, float]:
    """A LoRA of one rank for all linears, and the share of its squared norm that this leaves out."""
    found: dict[str, LowRank] = {}
    lost = whole = 0.0
    for name, one in lora.items():
        reduced, left_out = one.reduced(rank)
        found[name] = reduced.padded(rank)
        energy = one.energy
        lost, whole = lost + energy * left_out, whole + energy
    return found, lost / whole if whole else 0.0


def routed_linears(model: PeftModel) -> dict[str, MixtureLinear]:
    """The routed linears by name, in the order of a tally's rows."""
    routing, found = routing_of(model), {}
    assert routing is not None
    for name in routing.names:
        layer = model.get_base_model().get_submodule(name)
        assert isinstance(layer, MixtureLinear)
        found[name] = layer
    return found


def _plain(weight: Tensor) -> Tensor:
    return weight.detach().float().cpu().contiguous()


@contextmanager
def applied(model: PeftModel, lora: StaticLora) -> Iterator[None]:
    """Within the block a model computes its base with these updates, in place of its own adapter."""

    def adding(one: LowRank, linear: nn.Module) -> object:
        device = next(linear.parameters()).device
        down_SI, up_OS = one.down_SI.to(device), one.up_OS.to(device)

        def add(_module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
            return y + (inputs[0].float() @ down_SI.T @ up_OS.T).to(y.dtype)

        return linear.register_forward_hook(add)

    base = model.get_base_model()
    hooks = []
    try:
        with model.disable_adapter():
            hooks += [adding(one, base.get_submodule(name)) for name, one in lora.items()]
            yield
    finally:
        for hook in hooks:
            hook.remove()  # type: ignore[attr-defined]
