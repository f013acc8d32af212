"""`malora merge-export`: from a run to a folder that others load, with what it costs and whether it was checked."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from malora_cli.adapters.routing import routing_of
from malora_cli.data.batch import Packer
from malora_cli.data.encoding import Encoder
from malora_cli.data.splits import Split
from malora_cli.data.tasks import Task, load_tasks
from malora_cli.errors import RunError
from malora_cli.export.bundle.refusals import check_config
from malora_cli.export.bundle.write import write_bundle
from malora_cli.export.card import write_card
from malora_cli.export.cost import KEPT, Cost
from malora_cli.export.formats import FORMATS, Format, Origin
from malora_cli.export.gates import Gates
from malora_cli.export.hub import check_push, push
from malora_cli.export.measuring import costs_of, loras_of
from malora_cli.export.place import appearing_whole
from malora_cli.export.plan import Plan
from malora_cli.export.request import Exported, Request
from malora_cli.export.serving import write_serving
from malora_cli.export.static import StaticLora, at_rank, plain_lora
from malora_cli.export.sums import write_sums
from malora_cli.export.verify import Check, keep_expected, keep_rows, read_back, reading_of, sorted_out
from malora_cli.export.weights import own_weights
from malora_cli.modeling import (
    check_adapter,
    empty_base,
    load_adapter,
    load_base,
    load_config,
    load_tokenizer,
)
from malora_cli.recipe import Recipe
from malora_cli.results import RunRecord, read_json, write_json
from malora_cli.results.contents import ADAPTER_FILES

#: Rows of each task that an export is read back with, and of all tasks together; of each it is one at least.
_READ_BACK, _READ_BACK_IN_ALL = 4, 16


def export_run(
    record: RunRecord,
    recipe: Recipe,
    request: Request,
    folder: Path,
    tell: Callable[[str], None] = lambda _line: None,
) -> Exported:
    """Write an export; the folder appears whole, or not at all.

    Args:
        record: The run.
        recipe: The run's own.
        request: What is asked for.
        folder: Where to.
        tell: Told what is being done.

    Raises:
        MaloraError: The run is not finished, nothing of the kind can be made of it, the folder is in the way, or what
            was written is not what the run computes.
    """
    plan = Plan.of(record, recipe, request, folder)
    if request.push is not None:
        check_push(request, plan.named if request.base or plan.base.commit else None)
    job = _Job(**vars(plan), tell=tell)
    made = {"adapter": job.adapter_copied, "bundle": job.bundled}.get(request.to, job.merged)
    exported = made(folder)
    if request.push is None:
        return exported
    return replace(exported, pushed=push(folder, request, tell))


@dataclass(frozen=True)
class _Job(Plan):
    tell: Callable[[str], None]

    # ------------------------------------------------------------ what is loaded, once it is needed

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.base, self.recipe.model)

    @cached_property
    def tasks(self) -> list[Task]:
        return load_tasks(self.recipe.mix, Encoder(self.tokenizer), max_length=self.recipe.train.max_length)

    @cached_property
    def model(self) -> PeftModel:
        self.tell(f"loading {self.base.name}")
        return load_adapter(load_base(self.base, self.recipe.model), self.adapter, self.method)

    @property
    def packer(self) -> Packer:
        return Packer(self.recipe.eval.batch_size, self.recipe.train.micro_batch_tokens)

    # ------------------------------------------------------------ --to adapter

    def adapter_copied(self, folder: Path) -> Exported:
        """The adapter as it was trained, with its base model named as others can find it."""
        check_adapter(self.adapter, self.method)
        with appearing_whole(folder, force=self.request.force) as scratch:
            scratch.mkdir()
            for name in ADAPTER_FILES:
                shutil.copyfile(self.adapter / name, scratch / name)
            config = read_json(scratch / "adapter_config.json")
            card = self.adapter / "README.md"
            if card.is_file() and not card.is_symlink():  # and nothing that somebody may have put beside it
                text = card.read_text(encoding="utf-8", errors="replace")
                for place in (self.base.location, str(config.get("base_model_name_or_path") or self.named)):
                    text = text.replace(place, self.named)
                (scratch / card.name).write_text(text, encoding="utf-8")
            write_json(scratch / "adapter_config.json", {**config, "base_model_name_or_path": self.named})
            write_sums(scratch)
        return Exported(folder)

    # ------------------------------------------------------------ --to bundle

    def bundled(self, folder: Path) -> Exported:
        """The routed model itself, with the code that computes it."""
        self.planned(folder)
        check_config(load_config(self.base, self.recipe.model), self.base.name)
        with appearing_whole(folder, force=self.request.force) as scratch:
            self.tell("writing bundle")
            write_bundle(self.model, self.base, self.tokenizer, scratch)
            write_card(scratch, self.record, self.request, self.base, self.named, None, [])
            checks = self._checked({"bundle": (scratch, None)}, {})
            for found in checks.values():
                write_json(scratch / "verify.json", found)
            write_sums(scratch)
        return Exported(folder, checks=checks)

    # ------------------------------------------------------------ --to lora, --to dense

    def merged(self, folder: Path) -> Exported:
        """LoRAs for fixed gates, or the model with one added."""
        choices = self.choices
        rank = self.planned(folder).rank
        assert rank is not None
        form, origin = FORMATS[self.request.form], self._origin()
        if self.request.to == "lora" and self.request.base is None and self.base.commit is None:
            warnings.warn(
                "the export names its base model as this machine has it; --base NAME names it for others", stacklevel=2
            )
        loras, left_out = self._loras(choices, rank)
        costs = self._costs(choices, loras)
        with appearing_whole(folder, force=self.request.force) as scratch:
            scratch.mkdir()
            places = {name: scratch / name if len(loras) > 1 else scratch for name in loras}
            for name, lora in loras.items():
                places[name].mkdir(exist_ok=True)
                self._write(places[name], form, origin, lora, choices.get(name), costs[name])
            checks = self._checked({name: (places[name], lora) for name, lora in loras.items()}, choices)
            self._write_merges(places, choices, costs, checks, left_out)
            if len(loras) > 1:
                shared = self.request.rank is None
                write_serving(scratch, list(loras), rank, self.named, self.request.form, shares_down=shared)
            write_sums(scratch)
        return Exported(folder, costs, checks, left_out, fixed=bool(choices))

    def _origin(self) -> Origin:
        skeleton = empty_base(self.base, self.recipe.model)
        return Origin(self.base, self.recipe.model, skeleton, self.named, self.request.dtype)

    def _loras(self, choices: Mapping[str, Gates], rank: int) -> tuple[dict[str, StaticLora], dict[str, float]]:
        """The LoRAs by name, each of one rank, and what a lower rank leaves out of each."""
        model = self.model
        if choices:
            self.tell(f"measuring gates: {', '.join(gates.text for gates in choices.values())}")
            rows = self.request.rows or self.recipe.train.eval_rows
            found = loras_of(model, choices, self.tasks, rows, self.packer)
        else:
            found = {self.method.name: {} if self.is_dora else plain_lora(model)}
        at = {name: at_rank(lora, rank) for name, lora in found.items()}
        return {name: lora for name, (lora, _) in at.items()}, {name: left for name, (_, left) in at.items()}

    def _costs(self, choices: Mapping[str, Gates], loras: Mapping[str, StaticLora]) -> dict[str, list[Cost]]:
        """What each LoRA costs: every task where there is one LoRA, else the tasks that it is meant for."""
        if routing_of(self.model) is None and self.request.rank is None:
            return {name: [] for name in loras}  # it is exact
        self.tell("measuring what it costs")
        found: dict[str, list[Cost]] = {name: [] for name in loras}
        for task in self.tasks:
            of = {n: lora for n, lora in loras.items() if len(loras) == 1 or task.name in choices[n].tasks}
            if len(task.validation) and of:
                limit = self.request.rows or self.recipe.eval.rows
                for name, cost in costs_of(self.model, task, of, limit, self.packer).items():
                    found[name].append(cost)
        for name, measured in found.items():
            _judge(measured, choices.get(name), self.request.accept_loss)
        return found

    def _write(
        self, folder: Path, form: Format, origin: Origin, lora: StaticLora, gates: Gates | None, costs: Sequence[Cost]
    ) -> None:
        self.tell(f"writing {self.request.to}{'' if gates is None else f' for {gates.text}'}")
        task = next(iter(gates.tasks)) if gates is not None and len(gates.tasks) == 1 else None
        weights = own_weights(self.model, dora=self.is_dora)
        form.write(self.request.to, lora, replace(origin, weights=weights, task=task), folder)
        self.tokenizer.save_pretrained(folder)
        quantised = self.recipe.model.quantise
        write_card(folder, self.record, self.request, self.base, self.named, gates, costs, quantised)

    def _write_merges(
        self,
        places: Mapping[str, Path],
        choices: Mapping[str, Gates],
        costs: Mapping[str, Sequence[Cost]],
        checks: Mapping[str, Mapping[str, Any]],
        left_out: Mapping[str, float],
    ) -> None:
        manifest = self.record.manifest
        for name, place in places.items():
            gates = choices.get(name)
            write_json(
                place / "merge.json",
                {
                    "run": self.record.name,
                    "to": self.request.to,
                    "onto": self.recipe.model.quantise or "original",
                    "format": self.request.form,
                    "gates": None if gates is None else gates.text,
                    "shares": None if gates is None else gates.shares,
                    "gate_rows_per_task": self.request.rows or self.recipe.train.eval_rows,
                    "seed": self.recipe.mix.seed,
                    "base_model": self.named,
                    "base_model_sha256": manifest.base_model_sha256,
                    "base_model_commit": manifest.base_model_commit,
                    "left_out_by_rank": left_out[name],
                    "validation": {cost.task: cost.as_json() for cost in costs[name]},
                },
            )
            if name in checks:
                write_json(place / "verify.json", checks[name])

    # ------------------------------------------------------------ reading back

    def _checked(
        self, written: Mapping[str, tuple[Path, StaticLora | None]], choices: Mapping[str, Gates]
    ) -> dict[str, Mapping[str, Any]]:
        """Read exports back in a fresh process; what is expected is computed here, from the run.

        One of several is read back on rows of the tasks that it is for.
        """
        if not self.request.verify:
            return {}
        found = {name: reading_of(self.request, it, self.base, self.recipe.model) for name, (it, _) in written.items()}
        readings = {name: reading for name, reading in found.items() if reading is not None}
        to_read = {name: self._to_read(choices[name].tasks if len(written) > 1 else None) for name in readings}
        every = sorted({row for rows in to_read.values() for row in rows})
        asked: list[Check] = []
        with tempfile.TemporaryDirectory(prefix="malora-") as place:
            rows = Path(place) / "rows.safetensors"
            if readings:
                keep_rows(
                    self.model, [_held_out(self.tasks[task]).examples([row], task)[0] for task, row in every], rows
                )
            for number, (name, reading) in enumerate(readings.items()):
                self.tell(f"checking {name}")
                folder, lora = written[name]
                itself = not self.is_routed and self.request.rank is None  # a LoRA, whose adapter is what is expected
                expected = Path(place) / f"{number}.safetensors"
                numbers = [every.index(row) for row in to_read[name]]
                keep_expected(self.model, rows, numbers, expected, None if itself else lora)
                asked.append(Check(folder, reading, rows, expected))
            read = read_back(asked)
        return {name: sorted_out(self.request, read[number : number + 1]) for number, name in enumerate(written)}

    def _to_read(self, names: Collection[str] | None) -> list[tuple[int, int]]:
        """A few rows of some tasks or of all, each by the numbers of its task and of itself."""
        tasks = {number: task for number, task in enumerate(self.tasks) if names is None or task.name in names}
        each = max(1, min(_READ_BACK, _READ_BACK_IN_ALL // len(tasks)))
        return [(number, row) for number, task in tasks.items() for row in _held_out(task).sample(each)]


def _held_out(task: Task) -> Split:
    """The rows to measure by, where there are such."""
    return task.validation if len(task.validation) else task.train


def _judge(costs: Sequence[Cost], gates: Gates | None, accepted: float | None) -> None:
    """Refuse an export that is no good for the tasks that it is meant for, and warn of one that loses much.

    Raises:
        RunError: It is worse than the base model, or than the run by more than is accepted.
    """
    for cost in costs:
        if not isfinite(cost.merged):
            raise RunError(f"task '{cost.task}' has a NaN or infinite loss", where="--to", fix="Use --to adapter.")
        own = gates is None or not gates.tasks or cost.task in gates.tasks
        told = f"task '{cost.task}' has {cost.merged:.4f} nats a token"
        if own and accepted is not None and cost.merged - cost.routed > accepted:
            fix = "Raise --accept-loss, or take other gates, such as --gates fit or --gates each."
            raise RunError(f"{told}, {cost.merged - cost.routed:.4f} more than the run", where="--accept-loss", fix=fix)
        if own and accepted is None and cost.merged > cost.base >= cost.routed:
            raise RunError(
                f"{told} with these gates, and the base model {cost.base:.4f}",
                where="--gates",
                fix="Take others, such as --gates fit or --gates each, or set --accept-loss NATS.",
            )
        if own and cost.kept < KEPT:
            warnings.warn(
                f"task '{cost.task}' keeps {cost.kept:.0%} of what the run gained over the base model", stacklevel=2
            )
