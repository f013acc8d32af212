"""One adapted linear: the frozen base layer plus a mixture of low-rank experts with its router."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import Tensor, nn

from malora_cli.adapters.balancing import Balance, Choice, Loads, gates_of
from malora_cli.adapters.block import BlockRouter
from malora_cli.adapters.config import MIXTURE_PREFIX, MixtureConfig
from malora_cli.adapters.eager import eager
from malora_cli.adapters.entrywise import Steps, plain
from malora_cli.adapters.fused import can_fuse, fused_mixture
from malora_cli.adapters.initialisation import kaiming_uniform
from malora_cli.adapters.kernel import (
    Factors,
    Load,
    Seen,
    expert_load,
    mixture_delta,
    real_tokens,
    seen_of,
)
from malora_cli.adapters.logits import router_logits
from malora_cli.adapters.routing import Routing
from malora_cli.adapters.structure import Structure

NO_MERGE = (
    "a routed mixture has no single merged weight: every token takes its own experts. "
    "`malora merge-export RUN --to lora --gates task:NAME` writes the exact LoRA for fixed gates."
)


#: Layers whose sizes PEFT can tell although they multiply no vector by a matrix.
_NOT_LINEAR = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


#: What experts may be computed in besides float32.
_EXPERT_DTYPES = (torch.float16, torch.bfloat16, torch.float64)


def _is_autocast_to(y: Tensor) -> bool:
    """Whether products come out in the number format that a tensor has, so that one may go into it."""
    device = y.device.type
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == y.dtype


class MixtureLinear(nn.Module, BaseTunerLayer):
    """A linear layer with routed low-rank experts, one set for every adapter.

    Experts lie side by side in one matrix each, so that the kernel needs no copy: ``malora_down``,
    ``malora_coefficient`` (absent where it is the identity) and ``malora_up``, of the shapes that the configuration's
    `Structure` says, and ``malora_router`` (E, I), absent where another linear of the block has the router.

    Args:
        base_layer: The frozen linear: ``nn.Linear``, transformers' ``Conv1D`` or a quantised one.
        adapter_name: Name of the first adapter.
        config: Its configuration.
        routing: Shared by all routed layers of the model.
        name: The layer's name in the model, for the tally.
        block: The router that this linear shares with others, for the first adapter.
    """

    # Of BaseTunerLayer, which is not typed.
    active_adapters: list[str]
    disable_adapters: bool
    get_base_layer: Callable[[], nn.Module]
    _get_base_layer_device_and_dtype: Callable[[nn.Module], tuple[torch.device | None, torch.dtype | None]]
    set_adapter: Callable[..., None]
    weight: Tensor
    frozen_peft_weight_names: dict[str, tuple[str, ...]]

    adapter_layer_names = ("malora_down", "malora_coefficient", "malora_up", "malora_router")
    other_param_names = ("malora_dropout", "malora_config", "malora_structure", "malora_block")

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        *,
        config: MixtureConfig,
        routing: Routing,
        name: str,
        block: BlockRouter | None = None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        in_features, out_features = _get_in_out_features(self.get_base_layer())
        if in_features is None or out_features is None or isinstance(self.get_base_layer(), _NOT_LINEAR):
            raise TypeError(
                f"{name}: {type(base_layer).__name__} is not a linear layer; leave it out of target_modules"
            )
        self.in_features, self.out_features = in_features, out_features
        self.malora_down = nn.ParameterDict()
        self.malora_coefficient = nn.ParameterDict()
        self.malora_up = nn.ParameterDict()
        self.malora_router = nn.ParameterDict()
        self.malora_dropout = nn.ModuleDict()
        self.malora_config: dict[str, MixtureConfig] = {}
        self.malora_structure: dict[str, Structure] = {}
        self.malora_block: dict[str, BlockRouter] = {}
        self.malora_routing = routing
        self._router_index = len(routing.names)
        routing.names.append(name)
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, block)

    def update_layer(self, adapter_name: str, config: MixtureConfig, block: BlockRouter | None = None) -> None:
        """Add one adapter's parameters, initialised so that the layer's output does not change.

        Parameters are float32 on the base layer's device, as PEFT makes them of half-precision bases; see also
        `match_base_dtype`.
        """
        self.malora_config[adapter_name] = config
        self.malora_structure[adapter_name] = config.structure(self.in_features, self.out_features)
        # Of BaseTunerLayer, which keeps these as they are whenever it makes an adapter's weights trainable.
        frozen = tuple(f"{MIXTURE_PREFIX}{part}" for part in config.frozen)
        self.frozen_peft_weight_names = {**self.frozen_peft_weight_names, adapter_name: frozen}
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.malora_dropout[adapter_name] = dropout.train(self.training)  # a model in evaluation stays there
        for part, shape in self.malora_structure[adapter_name].shapes.items():
            getattr(self, MIXTURE_PREFIX + part)[adapter_name] = self._empty(*shape)
        if block is not None:
            self.malora_block[adapter_name] = block
        if block is None or block.joined(self._router_index, self.malora_router):
            self.malora_router[adapter_name] = self._empty(config.experts, self.in_features)
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

    def match_base_dtype(self, adapter_name: str) -> None:
        """Bring one adapter's experts to the base layer's dtype, as `round_experts`."""
        _, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
        self.round_experts(adapter_name, dtype)

    def round_experts(self, adapter_name: str, dtype: torch.dtype | None) -> None:
        """Bring one adapter's experts to a dtype. The router stays float32: it would pick others."""
        if dtype in _EXPERT_DTYPES and adapter_name in self.malora_structure:
            for part in self.malora_structure[adapter_name].parts:
                weight = getattr(self, MIXTURE_PREFIX + part)[adapter_name]
                weight.data = weight.data.to(dtype)

    def _empty(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(*shape, device=self.weight.device, dtype=torch.float32))

    @torch.no_grad()
    def reset_parameters(self, adapter_name: str) -> None:
        """Draw one adapter's initial values from the global generator (Eq. 8-10); nothing to do on the meta device."""
        if self.malora_up[adapter_name].is_meta:
            return
        structure = self.malora_structure[adapter_name]
        start = structure.start()
        for part in structure.parts:
            weight = getattr(self, MIXTURE_PREFIX + part)[adapter_name]
            weight.copy_(start[part]) if part in start else weight.zero_()
        if adapter_name in self.malora_router:
            self.malora_router[adapter_name].copy_(
                kaiming_uniform(self.malora_config[adapter_name].experts, self.in_features)
            )

    def factors(self, adapter_name: str) -> Factors:
        """One adapter's experts as the kernel takes them."""
        structure = self.malora_structure[adapter_name]
        return structure.factors({part: getattr(self, MIXTURE_PREFIX + part)[adapter_name] for part in structure.parts})

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output plus the gated update of every active adapter, in the base output's dtype."""
        if (rows := self.malora_routing.row_adapters) is not None and not self.disable_adapters:
            return self._adapted_by_row(rows.of(len(x)), x, *args, **kwargs)
        names = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.malora_up]
        if torch.compiler.is_compiling() and torch.is_grad_enabled() and any(map(self._balanced, names)):
            return self._adapted_eagerly(names, x, *args, **kwargs)
        return self._adapted(names, x, *args, **kwargs)

    @eager
    def _adapted_eagerly(self, names: list[str], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # The weight of the balance loss is known in the backward pass only.
        return self._adapted(names, x, *args, **kwargs)

    def _adapted(self, names: list[str], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self.base_layer
        if len(names) == 1 and not args and not kwargs:
            (name,) = names
            factors, dropout = self.factors(name), self.malora_dropout[name]
            if can_fuse(base, x, factors.up_OQ, dropout):
                config = self.malora_config[name]
                return fused_mixture(
                    base,
                    x,
                    factors,
                    dropout=dropout.p if dropout.training and isinstance(dropout, nn.Dropout) else 0.0,
                    router_EI=self._router(name),
                    choose=partial(self._choose, name=name),
                    hand_on=lambda gate, seen: self._handed_on(gate, seen, x, name).reshape(-1, config.experts),
                    scaling=config.scaling,
                    top_k=config.top_k,
                )
        y: Tensor = base(x, *args, **kwargs)
        for name in names:
            whole = self.training and _is_autocast_to(y)  # elsewhere what a bundle computes is the same to the bit
            y = self._delta(x, name, y) if whole else y + self._delta(x, name).to(y.dtype)
        return y

    def _adapted_by_row(self, names: list[str], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output plus, in each row, the update of the adapter that is named for it."""
        y: Tensor = self.base_layer(x, *args, **kwargs)
        for name in dict.fromkeys(names):
            if name in self.malora_up:
                rows = torch.tensor([row for row, own in enumerate(names) if own == name], device=x.device)
                y = y.index_add(0, rows, self._delta(x[rows], name).to(y.dtype))
        return y

    def _delta(self, x: Tensor, name: str, base: Tensor | None = None) -> Tensor:
        router = self._router(name)
        gate = self._gate(None if router is None else router_logits(x, router, training=self.training), x, name)
        if not torch.is_autocast_enabled(x.device.type):  # autocast would bring a float32 copy back at once
            x = x.to(self.malora_up[name].dtype)
        scaling = self.malora_config[name].scaling
        return mixture_delta(self.malora_dropout[name](x), gate, self.factors(name), scaling=scaling, base_TO=base)

    def _router(self, name: str) -> Tensor | None:
        """The router's weight; None where this linear takes its gates from the block."""
        block = self.malora_block.get(name)
        if block is None:
            weight: Tensor = self.malora_router[name]
            return weight
        return block.router_for(self._router_index, name, self.in_features)

    def _gate(self, logits: Tensor | None, x: Tensor, name: str) -> Tensor:
        """The gates for these logits, or those that the first linear called in the block has for the same tokens."""
        if logits is None:
            return self._handed_on(None, None, x, name)
        choice = self._choose((logits.detach(),), name=name, differentiable=logits.requires_grad)
        return self._handed_on(gates_of(logits, choice), choice.seen, x, name)

    def _choose(self, terms_TE: Sequence[Tensor], *, name: str, differentiable: bool, steps: Steps = plain) -> Choice:
        """What the router chooses, see `balancing.Choose`; a tally that runs is told."""
        config, routing, first = self.malora_config[name], self.malora_routing, terms_TE[0]
        balanced = differentiable and self._balanced(name)
        loads = routing.loads if self.training and routing.loads is not None else Loads()
        counted = balanced or routing.tally is not None
        mask = routing.mask_of(first.numel() // first.shape[-1], first.device) if counted else None
        assigned = loads.zeros(config.experts, first.device) if counted else None
        logits, gate = steps.choose(
            terms_TE, top_k=config.top_k, renormalize=config.renormalize, token_mask=mask, assigned_E=assigned
        )
        balance = seen = None
        if assigned is not None:
            load = Load(assigned, real_tokens(gate, mask))
            if routing.tally is not None:
                seen = None if self.training else seen_of(gate, logits, mask)
                routing.tally.add(self._router_index, load, seen)
            if balanced:
                # The paper's loss is the mean over routers, so that its weight does not depend on how many there are.
                factor = config.balance_factor / len(routing.routers[name])
                balance = Balance(loads, loads.add(load, factor), self._router_index, mask, routing)
        return Choice(logits, gate, config.renormalize, balance, seen)

    def _handed_on(self, gate: Tensor | None, seen: Seen | None, x: Tensor, name: str) -> Tensor:
        """The gates, once the other linears of the block have them too; None are taken from the block."""
        block = self.malora_block.get(name)
        if gate is None:
            assert block is not None
            gate = self._gate_of_block(block, x)
        elif block is not None:
            block.give(self._router_index, gate, seen)
        if self.malora_routing.observer is not None:
            self.malora_routing.observer(self._router_index, x, gate)
        return gate

    def _gate_of_block(self, block: BlockRouter, x: Tensor) -> Tensor:
        routing, tokens = self.malora_routing, x.numel() // x.shape[-1]
        gate, seen = block.take(self._router_index, tokens)
        gate = gate.view(*x.shape[:-1], gate.shape[-1])
        if routing.tally is not None:
            routing.tally.add(self._router_index, expert_load(gate, routing.mask_of(tokens, gate.device)), seen)
        return gate

    def _balanced(self, name: str) -> bool:
        """Whether a router of this adapter has a balance loss."""
        return self.training and self.malora_routing.balanced and self.malora_config[name].balance_factor > 0

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove one adapter, from the count of its routers as well."""
        self.malora_routing.routers.get(adapter_name, set()).discard(self._router_index)
        if adapter_name in self.malora_block:
            self.malora_block[adapter_name].left(self._router_index)
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
            f"{name}: {type(self.malora_structure[name]).__name__}, experts={c.experts}, top_k={c.top_k}, r={c.r}"
            for name, c in self.malora_config.items()
        )
