"""The mixture methods as PEFT tuners, and the one place that tells PEFT about them."""

from __future__ import annotations

from collections import defaultdict

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from malora_cli.adapters.block import BlockRouter
from malora_cli.adapters.config import (
    MIXTURE_PREFIX,
    HydraLoraConfig,
    MaloraConfig,
    MixtureConfig,
    MixtureType,
    MoloraConfig,
)
from malora_cli.adapters.following import follow
from malora_cli.adapters.layer import NO_MERGE, MixtureLinear
from malora_cli.adapters.routing import Routing, layer_of, routing_of
from malora_cli.adapters.targets import PAPER_TARGETS


class MixtureModel(BaseTuner):
    """Replaces the target linears of a model by `MixtureLinear`, and follows the forward passes of the model."""

    prefix = MIXTURE_PREFIX
    tuner_layer_cls = MixtureLinear
    target_module_mapping = PAPER_TARGETS

    def _pre_injection_hook(self, model: nn.Module, config: MixtureConfig, adapter_name: str) -> None:
        # A second adapter on the same model joins the routing that is there.
        self._routing = routing_of(model) or Routing()
        self._blocks: dict[tuple[str, str], BlockRouter] = defaultdict(BlockRouter)  # by adapter and module
        # A model of pictures and text has a list of layers for each.
        self._depth: dict[str, int] = defaultdict(int)
        for name, _ in model.named_modules():
            layers, number = layer_of(name)
            self._depth[layers] = max(self._depth[layers], number + 1)

    def _post_injection_hook(self, model: nn.Module, config: MixtureConfig, adapter_name: str) -> None:
        self._following = follow(model, self._routing)

    def _create_and_replace(
        self,
        peft_config: MixtureConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layers, number = layer_of(current_key)
        config = peft_config.of_layer(number, self._depth[layers])
        module = current_key.rpartition(".")[0]
        block = self._blocks[adapter_name, module] if config.router == "block" else None
        if isinstance(target, MixtureLinear):
            target.update_layer(adapter_name, config, block)
            return
        layer = MixtureLinear(target, adapter_name, config=config, routing=self._routing, name=current_key, block=block)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        raise ValueError(NO_MERGE)

    def unload(self) -> nn.Module:
        """The base model without the adapters, and without what followed its forward passes."""
        base: nn.Module = super().unload()
        for handle in self._following:
            handle.remove()
        return base


def register() -> None:
    """Make PEFT know our methods. Its own ``register_peft_method`` refuses names outside its enum."""
    configs = {
        MixtureType.MALORA: MaloraConfig,
        MixtureType.MOLORA: MoloraConfig,
        MixtureType.HYDRALORA: HydraLoraConfig,
    }
    for kind, config in configs.items():
        PEFT_TYPE_TO_CONFIG_MAPPING[kind] = config
        PEFT_TYPE_TO_TUNER_MAPPING[kind] = MixtureModel
        PEFT_TYPE_TO_PREFIX_MAPPING[kind] = MixtureModel.prefix


register()
