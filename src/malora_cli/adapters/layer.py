"""One adapted linear: the frozen base layer plus a mixture of low-rank experts with its router."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import Tensor, nn

from malora_cli.adapters.config import MIXTURE_PREFIX, MaloraConfig, MixtureConfig, MoloraConfig
from malora_cli.adapters.fused import can_fuse, fused_mixture
from malora_cli.adapters.initialisation import init_molora, kaiming_uniform, shared_subspace
from malora_cli.adapters.kernel import (
    Gates,
    balance_loss,
    expert_load,
    load_of_all_processes,
    mixture_delta,
    route,
)
from malora_cli.adapters.routing import Routing, attach_balance

NO_MERGE = (
    "a routed mixture has no single merged weight: every token takes its own experts. "
    "`malora merge-export RUN --to lora --gates task:NAME` writes the exact LoRA for fixed gates."
)


#: Layers whose sizes PEFT can tell although they multiply no vector by a matrix.
_NOT_LINEAR = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


class MixtureLinear(nn.Module, BaseTunerLayer):
    """A linear layer with routed low-rank experts, one set for every adapter.

    Experts lie side by side in one matrix each, so that the kernel needs no copy: ``malora_down`` (S, I),
    ``malora_coefficient`` (E*R, S, absent where it is the identity), ``malora_up`` (O, E*R), ``malora_router`` (E, I).

    Args:
        base_layer: The frozen linear: ``nn.Linear``, transformers' ``Conv1D`` or a quantised one.
        adapter_name: Name of the first adapter.
        config: Its configuration.
        routing: Shared by all routed layers of the model.
        name: The layer's name in the model, for the tally.
    """

    # Of BaseTunerLayer, which is not typed.
    active_adapters: list[str]
    disable_adapters: bool
    get_base_layer: Callable[[], nn.Module]
    set_adapter: Callable[..., None]
    weight: Tensor
    frozen_peft_weight_names: dict[str, tuple[str, ...]]

    adapter_layer_names = ("malora_down", "malora_coefficient", "malora_up", "malora_router")
    other_param_names = ("malora_dropout", "malora_config")

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, *, config: MixtureConfig, routing: Routing, name: str
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        in_features, out_features = _get_in_out_features(self.get_base_layer())
        if in_features is None or out_features is None or isinstance(self.get_base_layer(), _NOT_LINEAR):
            raise TypeError(f"{name}: {type(base_layer).__name__} is no linear layer; leave it out of target_modules")
        self.in_features, self.out_features = in_features, out_features
        self.malora_down = nn.ParameterDict()
        self.malora_coefficient = nn.ParameterDict()
        self.malora_up = nn.ParameterDict()
        self.malora_router = nn.ParameterDict()
        self.malora_dropout = nn.ModuleDict()
        self.malora_config: dict[str, MixtureConfig] = {}
        self.malora_routing = routing
        self._router_index = len(routing.names)
        routing.names.append(name)
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: MixtureConfig) -> None:
        """Add one adapter's parameters, initialised so that the layer's output does not change.

        Parameters are float32 on the base layer's device, as PEFT makes them of half-precision bases.
        """
        experts_rank = config.num_experts * config.r
        down_rank = config.shared_rank or experts_rank
        self.malora_config[adapter_name] = config
        # Of BaseTunerLayer, which keeps these as they are whenever it makes an adapter's weights trainable.
        frozen = tuple(f"{MIXTURE_PREFIX}{part}" for part in config.frozen)
        self.frozen_peft_weight_names = {**self.frozen_peft_weight_names, adapter_name: frozen}
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.malora_dropout[adapter_name] = dropout.train(self.training)  # a model in evaluation stays there
        self.malora_down[adapter_name] = self._empty(down_rank, self.in_features)
        if config.shared_rank is not None:
            self.malora_coefficient[adapter_name] = self._empty(experts_rank, down_rank)
        self.malora_up[adapter_name] = self._empty(self.out_features, experts_rank)
        self.malora_router[adapter_name] = self._empty(config.num_experts, self.in_features)
        self.malora_routing.routers.setdefault(adapter_name, set()).add(self._router_index)
        self.reset_parameters(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT's own brings a saved adapter to the base layer's dtype as well, which rounds it to half precision.
        target = device if device is not None else self.weight.device
        for name in self.adapter_layer_names:
            parameters = getattr(self, name)
            if adapter_name in parameters and not parameters[adapter_name].is_meta:
                parameters[adapter_name].data = parameters[adapter_name].data.to(target)

    def _empty(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(*shape, device=self.weight.device, dtype=torch.float32))

    @torch.no_grad()
    def reset_parameters(self, adapter_name: str) -> None:
        """Draw one adapter's initial values from the global generator (Eq. 8-10); nothing to do on the meta device."""
        down, config = self.malora_down[adapter_name], self.malora_config[adapter_name]
        if down.is_meta:
            return
        if isinstance(config, MaloraConfig):
            start = shared_subspace(
                self.in_features,
                num_experts=config.num_experts,
                r=config.r,
                subspace_rank=config.subspace_rank,
                beta=config.beta,
            )
            down.copy_(start.down_SI)
            self.malora_coefficient[adapter_name].copy_(start.coefficient_ERS.flatten(0, 1))
        else:
            same = isinstance(config, MoloraConfig) and config.same_init
            down.copy_(init_molora(self.in_features, num_experts=config.num_experts, r=config.r, same=same))
        self.malora_up[adapter_name].zero_()
        self.malora_router[adapter_name].copy_(kaiming_uniform(config.num_experts, self.in_features))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output plus the gated update of every active adapter, in the base output's dtype."""
        names = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.malora_up]
        base = self.base_layer
        if len(names) == 1 and not args and not kwargs and can_fuse(base, x, self.malora_up[names[0]]):
            return self._attend_to_routing(*self._fused(base, x, names[0]), names[0])
        y: Tensor = base(x, *args, **kwargs)
        for name in names:
            y = self._attend_to_routing(*self._added(x, y, name), name)
        return y

    def _fused(self, base: nn.Linear, x: Tensor, name: str) -> tuple[Tensor, Gates]:
        config = self.malora_config[name]
        return fused_mixture(
            base,
            x,
            dropout=self.malora_dropout[name],
            down_SI=self.malora_down[name],
            coefficient_QS=self.malora_coefficient.get(name),
            up_OQ=self.malora_up[name],
            router_EI=self.malora_router[name],
            scaling=config.scaling,
            top_k=config.top_k,
            renormalize=config.renormalize,
        )

    def _added(self, x: Tensor, y: Tensor, name: str) -> tuple[Tensor, Gates]:
        config = self.malora_config[name]
        gates = route(x, self.malora_router[name], top_k=config.top_k, renormalize=config.renormalize)
        if not torch.is_autocast_enabled(x.device.type):  # autocast would bring a float32 copy back at once
            x = x.to(self.malora_up[name].dtype)
        delta = mixture_delta(
            self.malora_dropout[name](x),
            gates.gate_TE,
            self.malora_down[name],
            self.malora_coefficient.get(name),
            self.malora_up[name],
            scaling=config.scaling,
        )
        return y + delta.to(y.dtype), gates

    def _attend_to_routing(self, y: Tensor, gates: Gates, name: str) -> Tensor:
        """Tally what the router chose and attach the balance loss, where either is asked for."""
        config, routing = self.malora_config[name], self.malora_routing
        balanced = self.training and config.balance_factor > 0 and torch.is_grad_enabled()
        if not balanced and routing.tally is None:
            return y
        mask = routing.token_mask
        if mask is not None and mask.numel() != gates.gate_TE[..., 0].numel():
            mask = None  # a mask over the cache as well, as in generation: it does not describe these tokens
        load = expert_load(gates.gate_TE, mask)
        balance = balance_loss(gates.probability_TE, load_of_all_processes(load), mask) if balanced else None
        if routing.tally is not None:
            routing.tally.add(self._router_index, load, balance)
        if balance is None:
            return y
        # The paper's loss is the mean over routers, so that its weight does not depend on how many there are.
        return attach_balance(y, balance, config.balance_factor / len(routing.routers[name]), routing)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove one adapter, from the count of its routers as well."""
        self.malora_routing.routers.get(adapter_name, set()).discard(self._router_index)
        super().delete_adapter(adapter_name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: see `NO_MERGE`."""
        raise ValueError(NO_MERGE)

    def unmerge(self) -> None:
        """Refused: nothing was ever merged."""
        raise ValueError(NO_MERGE)

    def extra_repr(self) -> str:
        """The numbers of each adapter, for ``print(model)``."""
        return ", ".join(
            f"{name}: experts={c.num_experts}, top_k={c.top_k}, r={c.r}, shared_rank={c.shared_rank}"
            for name, c in self.malora_config.items()
        )
