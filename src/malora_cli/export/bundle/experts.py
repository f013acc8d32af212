"""A mixture as a bundle holds it: its weights by name, and a section of ``config.json``."""

from __future__ import annotations

from typing import Any, NamedTuple

from peft import PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from malora_cli.adapters.config import MIXTURE_PREFIX, MixtureConfig
from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.routing import routing_of
from malora_cli.export.bundle.refusals import not_bundled, quantised


class _Routed(NamedTuple):
    """One adapted linear."""

    name: str  # in the language model
    layer: MixtureLinear

    @property
    def module(self) -> str:
        """Name of the module that it stands in."""
        return self.name.rpartition(".")[0]


def routed_linears(model: PeftModel, name: str) -> list[_Routed]:
    """The linears that the active adapter stands on, in the order of the model.

    Args:
        model: The wrapped model.
        name: What the recipe calls the base.

    Raises:
        ModelError: Something else is adapted than linears in full precision below the head.
    """
    base, routing = model.get_base_model(), routing_of(model)
    if not isinstance(model.active_peft_config, MixtureConfig) or routing is None:
        raise not_bundled("its adapter routes nothing, so there is no mixture to bundle", name)
    if any(isinstance(module, AuxiliaryTrainingWrapper) for module in model.modules()):
        raise not_bundled("tokens or whole modules were trained as well, and a bundle's base stays as it is", name)
    found = []
    for linear in routing.names:
        layer = base.get_submodule(linear)
        assert isinstance(layer, MixtureLinear)
        if model.active_adapter not in layer.malora_up:
            continue
        own = layer.get_base_layer()
        if not isinstance(own, (nn.Linear, Conv1D)) or not own.weight.is_floating_point():
            raise quantised(name)
        if not linear.startswith(f"{base.base_model_prefix}."):
            raise not_bundled(f"{linear} is adapted, which stands beside the base model", name)
        found.append(_Routed(linear, layer))
    return found


def section_of(linears: list[_Routed], adapter: str, prefix: str) -> dict[str, Any]:
    """What ``config.json`` says of a mixture.

    Args:
        linears: See `routed_linears`.
        adapter: Name of the adapter.
        prefix: What names begin with in the language model and not in the model below its head.
    """
    groups: dict[tuple[Any, ...], list[str]] = {}
    blocks = {}
    for linear in linears:
        config, router = linear.layer.malora_config[adapter], linear.layer.malora_router.get(adapter)
        groups.setdefault(_sizes(linear.layer, adapter), []).append(linear.name.removeprefix(prefix))
        if router is not None and adapter in linear.layer.malora_block:
            sizes = {"experts": config.experts, "in_features": router.shape[1]}
            blocks[linear.module.removeprefix(prefix)] = sizes
    return {
        "renormalize": linears[0].layer.malora_config[adapter].renormalize,
        "blocks": blocks,
        "groups": [{**dict(sizes), "linears": names} for sizes, names in groups.items()],
    }


def _sizes(layer: MixtureLinear, adapter: str) -> tuple[tuple[str, Any], ...]:
    config, factors = layer.malora_config[adapter], layer.factors(adapter)
    subspace = None if factors.coefficient_QS is None else len(factors.down_SI)
    sizes = {"experts": config.experts, "top_k": config.top_k, "rank": config.r, "subspace_rank": subspace}
    return tuple({**sizes, "scaling": config.scaling}.items())


def weights_of(linears: list[_Routed], adapter: str) -> dict[str, Tensor]:
    """The kernel's matrices and the routers as they were trained, by name in the language model."""
    weights: dict[str, Tensor] = {}
    for linear in linears:
        down, coefficient, up = linear.layer.factors(adapter)
        parts = {"down": down, "coefficient": coefficient, "up": up}
        weights |= {f"{linear.name}.{MIXTURE_PREFIX}{part}": w for part, w in parts.items() if w is not None}
        if (router := linear.layer.malora_router.get(adapter)) is not None:
            place = linear.module if adapter in linear.layer.malora_block else linear.name
            weights[f"{place}.{MIXTURE_PREFIX}router"] = router
    return {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
