"""Exporting a run in the process of a test, without reading the export back in another."""

from __future__ import annotations

from pathlib import Path

from malora_cli.export.cost import Cost
from malora_cli.export.request import Exported, Request
from malora_cli.export.run import export_run
from malora_cli.recipe import Recipe
from malora_cli.results import RunRecord

#: More than a tiny model that hardly learned can lose by gates held fixed.
ANY_LOSS = 99.0


def export_adapter(record: RunRecord, recipe: Recipe, folder: Path, *, step: int | None = None) -> Exported:
    return export_run(record, recipe, Request("adapter", step=step), folder)


def export_lora(
    record: RunRecord, recipe: Recipe, folder: Path, *, gates: str, rows: int | None = None, step: int | None = None
) -> list[Cost]:
    request = Request("lora", gates=gates, rows=rows, step=step, verify=False, accept_loss=ANY_LOSS)
    [costs] = export_run(record, recipe, request, folder).costs.values()
    return list(costs)
