"""Exporting a run in the process of a test, without reading the export back in another."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from malora_cli.adapters.methods import METHODS
from malora_cli.export.cost import Cost
from malora_cli.export.request import Exported, Request
from malora_cli.export.run import export_run
from malora_cli.modeling import wrap
from malora_cli.recipe import Recipe
from malora_cli.results import RunRecord
from tiny_models import tiny

#: More than a tiny model that hardly learned can lose by gates held fixed.
ANY_LOSS = 99.0
IDS = torch.tensor([[5, 17, 40, 9, 77, 31, 8, 60]])


def export_adapter(record: RunRecord, recipe: Recipe, folder: Path, *, step: int | None = None) -> Exported:
    return export_run(record, recipe, Request("adapter", step=step), folder)


def export_lora(
    record: RunRecord, recipe: Recipe, folder: Path, *, gates: str, rows: int | None = None, step: int | None = None
) -> list[Cost]:
    request = Request("lora", gates=gates, rows=rows, step=step, verify=False, accept_loss=ANY_LOSS)
    [costs] = export_run(record, recipe, request, folder).costs.values()
    return list(costs)


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def mixture(kind: str = "llama", **settings: object) -> PeftModel:
    """A model with experts that do something."""
    model = wrap(tiny(kind), METHODS["malora"](**{"r": 3, "subspace_rank": 6, "num_experts": 4, **settings}))  # type: ignore[arg-type]
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "malora_up" in name or "malora_router" in name:
                parameter.normal_(0, 0.1)
    return model.eval()
