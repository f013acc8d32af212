"""`malora merge-export`: write a run's adapter for use elsewhere, and measure what that costs."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor

from malora_cli.adapters.methods._base import AdapterSettings
from malora_cli.adapters.routing import routing_of
from malora_cli.data.batch import Batch, Packer
from malora_cli.data.encoding import Encoder
from malora_cli.data.splits import Split
from malora_cli.data.tasks import Task, in_lots, load_tasks
from malora_cli.errors import RecipeError, RunError
from malora_cli.export.static import export_static_lora
from malora_cli.modeling import base_of_run, check_adapter, load_adapter, load_base, load_tokenizer
from malora_cli.modeling.heldout import HeldOut, held_out
from malora_cli.modeling.memory import fitting
from malora_cli.recipe import Recipe
from malora_cli.registry import did_you_mean
from malora_cli.results import RunRecord, read_json, why_unwritable, write_json
from malora_cli.results.contents import ADAPTER_FILES

_LOT = 1000
_MIX = "mix"
_TASK = "task:"
_README = "README.md"


@dataclass(frozen=True)
class MergeCost:
    """Validation loss of one task, nats a token, routed and with the gates held fixed."""

    task: str
    routed: float
    merged: float


def export_adapter(record: RunRecord, recipe: Recipe, folder: Path, *, step: int | None = None) -> None:
    """Copy a run's adapter, with the base model named as others can find it.

    Args:
        record: The run.
        recipe: The run's own.
        folder: Where to; it must not exist.
        step: Take the checkpoint of this step instead of the finished adapter.

    Raises:
        RunError: There is no such adapter, or the folder is in the way.
    """
    adapter = _check(record, folder, step)
    base = base_of_run(recipe.model, record.manifest)
    check_adapter(adapter, cast(AdapterSettings, recipe.method))
    with _appearing_whole(folder) as scratch:
        scratch.mkdir()
        for name in (*ADAPTER_FILES, _README):  # and nothing that somebody may have put beside them
            if name in ADAPTER_FILES or ((adapter / name).is_file() and not (adapter / name).is_symlink()):
                shutil.copyfile(adapter / name, scratch / name)
        config = read_json(scratch / "adapter_config.json")
        write_json(scratch / "adapter_config.json", {**config, "base_model_name_or_path": base.public_name})
        if (card := scratch / "README.md").is_file():
            text = card.read_text(encoding="utf-8", errors="replace")
            card.write_text(text.replace(base.location, base.public_name), encoding="utf-8")


def export_lora(
    record: RunRecord, recipe: Recipe, folder: Path, *, gates: str, rows: int | None = None, step: int | None = None
) -> list[MergeCost]:
    """Write the LoRA that a run's mixture is for the mean gates of a task, or of the whole mix.

    Args:
        record: A finished run of a routed method.
        recipe: The run's own.
        folder: Where to; it must not exist.
        gates: ``task:NAME`` or ``mix``. Mean gates are of training rows, their cost of validation rows: test rows stay
            unseen.
        rows: Rows a task to measure gates and losses on; None is the recipe's ``train.eval_rows`` and ``eval.rows``.
        step: Take the checkpoint of this step instead of the finished adapter.

    Returns:
        What holding the gates fixed costs each task that has validation rows.

    Raises:
        MaloraError: The run is not finished or not routed, the gates name no task, or the folder is in the way.
    """
    adapter = _check(record, folder, step)
    names = _tasks_of(gates, recipe)
    base = base_of_run(recipe.model, record.manifest)
    tasks = load_tasks(recipe.mix, Encoder(load_tokenizer(base, recipe.model)), max_length=recipe.train.max_length)
    model = load_adapter(load_base(base, recipe.model), adapter, cast(AdapterSettings, recipe.method))
    if routing_of(model) is None:
        raise RunError(
            f"method '{recipe.method.name}' has no routed experts to merge",
            where=str(record.path),
            fix="Its adapter is a plain LoRA already: use --to adapter.",
        )
    packer = Packer(recipe.eval.batch_size, recipe.train.micro_batch_tokens)
    limit = rows or recipe.eval.rows
    routed = _losses(model, tasks, limit, packer)
    share = {name: record.manifest.task_share[name] for name in names}
    gate_LE = _mean_gates(model, tasks, share, rows or recipe.train.eval_rows, packer)
    with _appearing_whole(folder) as scratch:
        export_static_lora(model, gate_LE, scratch, base=base.public_name)
        # Read back through plain PEFT, as others will.
        merged = _losses(load_adapter(load_base(base, recipe.model), scratch), tasks, limit, packer)
        costs = [MergeCost(name, routed[name], merged[name]) for name in routed]
        write_json(
            scratch / "merge.json",
            {
                "run": record.name,
                "gates": gates,
                "validation_nats_per_token": {
                    cost.task: {"routed": cost.routed, "merged": cost.merged} for cost in costs
                },
            },
        )
    return costs


def _tasks_of(gates: str, recipe: Recipe) -> list[str]:
    if gates == _MIX:
        return list(recipe.mix.tasks)
    name = gates.removeprefix(_TASK)
    if not gates.startswith(_TASK) or name not in recipe.mix.tasks:
        near = did_you_mean(gates, [_MIX, *(f"{_TASK}{task}" for task in recipe.mix.tasks)])
        raise RecipeError(f"'{gates}' names no gates; {near}", where="--gates")
    return [name]


def _held_out(model: PeftModel, rows: Split, limit: int | None, packer: Packer) -> HeldOut:
    """Loss and gates on at most so many rows, fewer at once where memory does not suffice."""

    def batches(packer: Packer) -> Iterator[Batch]:
        return (batch for lot in in_lots(rows, 0, limit=limit, size=_LOT) for batch in packer(lot))

    fix = "Export on a device with more memory."
    return fitting(lambda packer: held_out(model, batches(packer)), packer, f"rows of {rows.source}", fix=fix)[0]


def _losses(model: PeftModel, tasks: Iterable[Task], limit: int | None, packer: Packer) -> dict[str, float]:
    """The loss of every task that has validation rows."""
    found = {}
    for task in tasks:
        if len(task.validation):
            loss = _held_out(model, task.validation, limit, packer).loss.loss
            assert loss is not None
            found[task.name] = loss
    return found


def _mean_gates(
    model: PeftModel, tasks: Iterable[Task], share: Mapping[str, float], rows: int, packer: Packer
) -> Tensor:
    """Mean gates of every router over training rows of some tasks, each weighing its share of the mix.

    Returns:
        Gates, shape ``(routers, experts)``.
    """
    parts = []
    for task in tasks:
        if task.name in share:
            tally = _held_out(model, task.train, rows, packer).tally
            assert tally is not None
            parts.append(tally.mean_gate_LE * (share[task.name] / sum(share.values())))
    return torch.stack(parts).sum(0)


def _check(record: RunRecord, folder: Path, step: int | None) -> Path:
    """Make sure that there is something to export and somewhere to put it, before anything slow happens."""
    adapter = record.adapter_at(step)
    fix = "Name another by --out FOLDER."
    if folder.exists():
        raise RunError("this folder exists already, and exports are never overwritten", where=str(folder), fix=fix)
    if (why := why_unwritable(folder)) is not None:
        raise RunError(f"the export cannot be written ({why})", where=str(folder), fix=fix)
    return adapter


@contextmanager
def _appearing_whole(folder: Path) -> Iterator[Path]:
    """A scratch path that takes the name of ``folder`` when the block ends well, and is removed when it does not."""
    scratch = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        scratch.rename(folder)
    except (OSError, SafetensorError) as error:  # which is what a full disk is to safetensors
        why = error.strerror or error if isinstance(error, OSError) else error
        fix = "Free some space there, or name another folder by --out FOLDER."
        raise RunError(f"the export cannot be written ({why})", where=str(folder), fix=fix) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
