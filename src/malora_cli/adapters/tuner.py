"""The mixture methods as PEFT tuners, and the one place that tells PEFT about them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from malora_cli.adapters.config import (
    MIXTURE_PREFIX,
    HydraLoraConfig,
    MaloraConfig,
    MixtureConfig,
    MixtureType,
    MoloraConfig,
)
from malora_cli.adapters.layer import NO_MERGE, MixtureLinear
from malora_cli.adapters.routing import (
    BlockRouter,
    Routing,
    layer_of,
    routing_of,
    scale_balance_with,
    scale_balance_with_tokens,
)
from malora_cli.adapters.targets import PAPER_TARGETS

IGNORED_LABEL = -100


class MixtureModel(BaseTuner):
    """Replaces the target linears of a model by `MixtureLinear` and hands each forward pass its token mask."""

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

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped model's forward; a loss it returns also sets the weight of the balance loss."""
        mask = kwargs.get("attention_mask")
        self._routing.token_mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        self._routing.balance_weight = 1.0
        output = super().forward(*args, **kwargs)
        if not self.training:  # nothing is computed again, and `generate` does not come by here to set its own
            self._routing.token_mask = None
        if self.training and torch.is_grad_enabled():
            self._follow_loss(output, kwargs)
        return output

    def _follow_loss(self, output: Any, kwargs: dict[str, Any]) -> None:
        """Let the balance loss weigh what the trainer makes the loss weigh, or the log-probabilities behind it."""
        loss = getattr(output, "loss", None)
        if isinstance(loss, Tensor) and loss.requires_grad:
            output.loss = scale_balance_with(loss, _share_of_batch(kwargs), self._routing)
        # Of TRL's head, see `trl.trainer.utils.FusedCausalLMOutput`.
        log_probs, mask = getattr(output, "log_probs", None), getattr(output, "label_mask", None)
        if isinstance(log_probs, Tensor) and isinstance(mask, Tensor) and log_probs.requires_grad:
            output.log_probs = scale_balance_with_tokens(log_probs, mask, self._routing)


def _share_of_batch(kwargs: dict[str, Any]) -> Tensor | float:
    """This micro-batch's share of the supervised tokens of the whole batch, where the trainer says their number."""
    labels, total = kwargs.get("labels"), kwargs.get("num_items_in_batch")
    if labels is None or total is None:
        return 1.0
    share: Tensor = (labels[..., 1:] != IGNORED_LABEL).sum() / total
    return share


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
