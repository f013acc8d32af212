"""The mixture methods as PEFT tuners, and the one place that tells PEFT about them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper
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
from malora_cli.adapters.routing import Routing, RowAdapters, layer_of, routing_of
from malora_cli.adapters.targets import PAPER_TARGETS


class MixtureModel(BaseTuner):
    """Replaces the target linears of a model by `MixtureLinear`, and follows the forward passes of the model."""

    prefix = MIXTURE_PREFIX
    tuner_layer_cls = MixtureLinear
    target_module_mapping: ClassVar[dict[str, Any]] = {
        **TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
        **PAPER_TARGETS,
    }

    def _pre_injection_hook(self, model: nn.Module, config: MixtureConfig, adapter_name: str) -> None:
        # A second adapter on the same model joins the routing that is there.
        self._routing = routing_of(model) or Routing()
        self._blocks: dict[tuple[str, str], BlockRouter] = defaultdict(BlockRouter)  # by adapter and module
        # A model of pictures and text has a list of layers for each.
        self._depth: dict[str, int] = defaultdict(int)
        for name, _ in model.named_modules():
            layers, number = layer_of(name)
            self._depth[layers] = max(self._depth[layers], number + 1)

    def _prepare_adapter_config(self, peft_config: MixtureConfig, model_config: dict[str, Any]) -> MixtureConfig:
        kind = model_config.get("model_type")
        if peft_config.target_modules is None and kind not in self.target_module_mapping:
            raise ValueError(
                f"which linears of a '{kind}' model to adapt is not known; set target_modules to their names, or to "
                f"'all-linear'"
            )
        prepared: MixtureConfig = super()._prepare_adapter_config(peft_config, model_config)
        return prepared

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
        config = peft_config.of_layer(number, self._depth[layers]).of_module(current_key)
        module = current_key.rpartition(".")[0]
        block = self._blocks[adapter_name, module] if config.router == "block" else None
        if isinstance(target, MixtureLinear):
            target.update_layer(adapter_name, config, block)
            return
        layer = MixtureLinear(target, adapter_name, config=config, routing=self._routing, name=current_key, block=block)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            for layer in self._linears():
                layer.match_base_dtype(adapter_name)

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *_: Any, adapter_names: list[str] | None = None, num_beams: int | None = None, **__: Any
    ) -> Iterator[None]:
        """Let each row of a batch take the adapter that ``adapter_names`` has for it, within the block.

        Raises:
            ValueError: The model is in training, or has no adapter of such a name.
        """
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError("adapter_names is for inference, and the model is in training mode: call model.eval()")
        known = {"__base__"}.union(*(layer.malora_up for layer in self._linears()))
        if unknown := sorted(set(adapter_names) - known):
            raise ValueError(f"adapter_names has {', '.join(unknown)}, which no adapter of the model is called")
        rows = RowAdapters(list(adapter_names), num_beams or 1)

        def name_rows(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            own = module._get_available_adapters()
            names = [name if name in own else "__base__" for name in rows.of(len(args[0]))]
            return args, {**kwargs, "adapter_names": names}

        # Of modules that are trained whole, and of tokens, PEFT sees to the rows itself, where they all have them.
        whole = [module for module in self.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
        handles = [module.register_forward_pre_hook(name_rows, with_kwargs=True) for module in whole]
        self._routing.row_adapters = rows
        try:
            yield
        finally:
            self._routing.row_adapters = None
            for handle in handles:
                handle.remove()

    def _linears(self) -> Iterator[MixtureLinear]:
        return (module for module in self.model.modules() if isinstance(module, MixtureLinear))

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
