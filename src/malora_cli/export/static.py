"""Static merges: a routed mixture with its gates held fixed is an ordinary LoRA, exactly.

``s * sum_t g_t U_t C_t D x = (s * sum_t g_t U_t C_t) D x``: a LoRA whose down-projection is D itself, of rank d for
MALoRA and N r for MoLoRA, without an SVD. Only the routing is approximated.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

from malora_cli.adapters.config import MixtureConfig
from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.routing import routing_of


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
def export_static_lora(model: PeftModel, gate_LE: Tensor, folder: Path, *, base: str) -> None:
    """Write the LoRA that a routed model is for fixed gates, in PEFT's format.

    Args:
        model: The wrapped model.
        gate_LE: Gates of every router, in the order of a tally's rows.
        folder: Where to; it must not exist.
        base: What the adapter names as its base model.
    """
    config = model.peft_config[model.active_adapter]
    routing, adapter = routing_of(model), model.active_adapter
    assert isinstance(config, MixtureConfig)
    assert routing is not None
    weights: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, gate_E in zip(routing.names, gate_LE, strict=True):
        layer = model.get_base_model().get_submodule(name)
        assert isinstance(layer, MixtureLinear)
        factors, own = layer.factors(adapter), layer.malora_config[adapter]
        gates = gate_E[: own.experts].to(factors.up_OQ.device)
        static = static_up(factors.up_OQ, factors.coefficient_QS, gates, scaling=own.scaling)
        weights[f"base_model.model.{name}.lora_A.weight"] = factors.down_SI.detach().cpu().contiguous()
        weights[f"base_model.model.{name}.lora_B.weight"] = static.cpu().contiguous()
        ranks[name] = len(factors.down_SI)
    rank = max(ranks.values())
    lower = {name: count for name, count in ranks.items() if count != rank}
    lora = LoraConfig(
        r=rank,
        lora_alpha=rank,  # the scaling is in B already
        rank_pattern=lower,
        alpha_pattern=dict(lower),
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        task_type=config.task_type,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    folder.mkdir(parents=True)
    lora.save_pretrained(str(folder))
    save_file(weights, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
