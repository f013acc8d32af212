"""What an export costs: the loss of the base model, of the run and of what is written, on validation rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor

from malora_cli.data.batch import Batch
from malora_cli.export.static import StaticLora, applied
from malora_cli.modeling.device import exact
from malora_cli.modeling.loss import moved, target_logits
from malora_cli.modeling.modes import as_trained, evaluating

#: Share of the gain over the base model below which an export is warned of.
KEPT = 0.9


@dataclass(frozen=True)
class Cost:
    """One task under one LoRA, measured on the supervised tokens of validation rows.

    Args:
        task: Its name.
        rows: Rows measured.
        tokens: Supervised tokens of these.
        base: Loss of the base model, nats a token.
        routed: Loss of the run.
        merged: Loss with the LoRA.
        divergence: KL from the run's distribution to the LoRA's, nats a token.
        same_top: Share of the tokens at which both find the same token most likely.
    """

    task: str
    rows: int
    tokens: int
    base: float
    routed: float
    merged: float
    divergence: float
    same_top: float

    @property
    def kept(self) -> float:
        """Share of the run's gain over the base model that the LoRA keeps; NaN where the run gained nothing."""
        gain = self.base - self.routed
        return (self.base - self.merged) / gain if gain > 0 else nan

    def as_json(self) -> dict[str, float | int | None]:
        """For ``merge.json``."""
        found = {name: value for name, value in vars(self).items() if name != "task"}
        return found | {"kept": None if self.kept != self.kept else self.kept}


@torch.no_grad()
def costs(model: PeftModel, task: str, batches: Iterable[Batch], loras: Mapping[str, StaticLora]) -> dict[str, Cost]:
    """What some LoRAs cost a task, each by its name.

    Args:
        model: The wrapped model, its adapter active.
        task: Name of the task.
        batches: Its validation rows.
        loras: The LoRAs.
    """
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(5, dtype=torch.float64))
    rows = tokens = 0
    device = next(model.parameters()).device
    with evaluating(model), as_trained(model):
        for batch in (moved(batch, device) for batch in batches):
            rows += len(batch["lengths"])
            tokens += len(batch["targets"])
            with model.disable_adapter():
                base = _nats(F.log_softmax(target_logits(model, batch), -1), batch["targets"])
            routed_KV = F.log_softmax(target_logits(model, batch), -1)
            routed = _nats(routed_KV, batch["targets"])
            for name, lora in loras.items():
                with applied(model, lora):
                    merged_KV = F.log_softmax(target_logits(model, batch), -1)
                sums[name] += torch.tensor([base, routed, *_against(routed_KV, merged_KV, batch)])
    return {name: Cost(task, rows, tokens, *(found / max(tokens, 1)).tolist()) for name, found in sums.items()}


def _nats(log_KV: Tensor, targets_K: Tensor) -> float:
    return float(-exact(log_KV.gather(1, targets_K.unsqueeze(1))).sum())


def _against(routed_KV: Tensor, merged_KV: Tensor, batch: Mapping[str, Any]) -> tuple[float, float, float]:
    """Summed nats, divergence and equal most likely tokens."""
    divergence = F.kl_div(merged_KV, routed_KV, reduction="sum", log_target=True)
    same = (routed_KV.argmax(1) == merged_KV.argmax(1)).sum()
    return _nats(merged_KV, batch["targets"]), float(divergence), float(same)
