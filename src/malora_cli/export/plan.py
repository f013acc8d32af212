"""What is exported of a run, and what it is going to be, as far as that is known before weights are loaded.

Nothing here takes torch, so that a dry run is there at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from malora_cli.adapters.methods._base import AdapterSettings
from malora_cli.adapters.methods._mixture import MixtureSettings
from malora_cli.errors import RecipeError, RunError
from malora_cli.export.bundle.refusals import check_bundle
from malora_cli.export.formats import FORMATS
from malora_cli.export.gates import Gates, parse_gates
from malora_cli.export.place import check_place
from malora_cli.export.planned import Planned, bytes_of, rank_of, updates_in
from malora_cli.export.request import DEFAULT_GATES, Request
from malora_cli.export.serving import server_commands
from malora_cli.export.sums import SUMS
from malora_cli.modeling import BaseModel, base_of_run
from malora_cli.modeling.finding import config_of
from malora_cli.recipe import Recipe
from malora_cli.results import RunRecord
from malora_cli.results.contents import ADAPTER_FILES

#: What lies beside weights and their configuration.
_BESIDE = ("tokenizer", "README.md", "verify.json", SUMS)


@dataclass(frozen=True)
class Plan:
    """An export that nothing is known to be in the way of.

    Args:
        record: The run.
        recipe: The run's own; its base model is the one that the export is for.
        request: What is asked for.
        adapter: Folder of the adapter.
        base: The base model.
    """

    record: RunRecord
    recipe: Recipe
    request: Request
    adapter: Path
    base: BaseModel

    @classmethod
    def of(cls, record: RunRecord, recipe: Recipe, request: Request, folder: Path) -> Plan:
        """What is going to be exported.

        Args:
            record: The run.
            recipe: The run's own.
            request: What is asked for.
            folder: Where to.

        Raises:
            MaloraError: The run is not finished, its base model is not there or is not quantised where that is asked
                about, or the folder is in the way.
        """
        adapter = record.adapter_at(request.step)
        check_place(folder, force=request.force)
        base = base_of_run(recipe.model, record.manifest)
        if request.onto is not None and recipe.model.quantise is None:
            what = "the run's base model is not quantised: its weights are the original ones"
            raise RecipeError(what, where="--onto", fix="Leave it out.")
        if request.onto == "original":  # from here on the base is what its files say
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"quantise": None})})
        return cls(record, recipe, request, adapter, base)

    @property
    def method(self) -> AdapterSettings:
        """The run's method."""
        return cast(AdapterSettings, self.recipe.method)

    @property
    def is_routed(self) -> bool:
        """Whether there are gates."""
        return isinstance(self.method, MixtureSettings)

    @property
    def is_dora(self) -> bool:
        """Whether what the adapter adds is no LoRA."""
        return bool(self.method.variant.get("use_dora"))

    @property
    def named(self) -> str:
        """What the export calls its base model: what PEFT and servers are given."""
        if self.request.to != "lora" or self.request.base is not None:
            return self.request.base or self.base.public_name
        if self.request.form == "gguf" and self.base.gguf is not None:
            return self.base.gguf.name
        return self.base.location

    @cached_property
    def choices(self) -> Mapping[str, Gates]:
        """The gates by the name of each export; nothing for a method without a router.

        Raises:
            MaloraError: There are no such gates, or nothing of the kind can be made of the method.
        """
        if self.is_routed:
            found = parse_gates(self.request.gates or DEFAULT_GATES, self.recipe.mix, self.record.manifest.task_share)
            if len(found) > 1 and self.request.to == "dense":
                fix = "Name one task, or use --to lora."
                raise RecipeError("a whole model is written for one choice of gates", where="--gates", fix=fix)
            return {gates.name: gates for gates in found}
        name = self.method.name
        if self.request.gates is not None:
            raise RunError(
                f"method '{name}' has no routed experts whose gates could be held fixed",
                where=str(self.record.path),
                fix="Leave out --gates.",
            )
        if self.is_dora and (instead := self._no_dora()) is not None:
            what = f"what method '{name}' adds is not a LoRA: it changes the length of the weights"
            raise RunError(what, where=str(self.record.path), fix=instead)
        return {}

    def _no_dora(self) -> str | None:
        """What to ask for instead, where weights that DoRA makes cannot be written as is asked for."""
        if self.request.to == "lora":
            return "Use --to dense, or --to adapter."
        if self.request.rank is not None:
            return "Leave out --rank."
        if self.request.form != "hf":
            return "Use --format hf."
        return None if self.recipe.model.quantise is None else "Add --onto original."

    # ------------------------------------------------------------ what it is going to be

    def planned(self, folder: Path) -> Planned:
        """What is going to be written, for which there is room.

        Raises:
            MaloraError: It cannot be made, or there is no room for it.
        """
        found = {"adapter": self._adapter, "bundle": self._bundle}.get(self.request.to, self._merged)()
        found.check_room(folder)
        return found

    def _adapter(self) -> Planned:
        size = (self.adapter / ADAPTER_FILES[1]).stat().st_size
        files = [*ADAPTER_FILES, "README.md", SUMS]
        return Planned(["adapter"], None, None, size, files, "the adapter as it was trained, byte for byte")

    def _bundle(self) -> Planned:
        check_bundle(self.recipe.model, self.method, config_of(self.base))
        whole = bytes_of(self.request, 0, [], self.base, self.recipe.model)
        size = whole + (self.adapter / ADAPTER_FILES[1]).stat().st_size
        files = ["the base model's weights", "malora.safetensors", "config.json", "two Python files", *_BESIDE]
        exactness = "the base model's files and the experts, byte for byte"
        return Planned(["bundle"], None, None, size, files, exactness)

    def _merged(self) -> Planned:
        form = FORMATS[self.request.form]
        form.check(self.request.to, self.base, self.recipe.model, config_of(self.base))
        names = list(self.choices) or [self.method.name]
        updates = updates_in(self.adapter)
        rank, exact = rank_of(self.request, updates)
        size = bytes_of(self.request, rank, updates, self.base, self.recipe.model)
        files = [*form.files(self.request.to, self.base), "merge.json", *_BESIDE]
        return Planned(names, rank, exact, size, files, self._exactness(rank, exact))

    def _exactness(self, rank: int, exact: int) -> str:
        """How near a LoRA or a whole model is going to be."""
        gates = next(iter(self.choices.values()), None)
        if gates is None:
            found = "exact"
        elif gates.fit:
            found = "the nearest LoRA to the routed mixture, which it approximates"
        else:
            found = "exact for gates held fixed, which approximate the routing"
        found += f"; rank {rank} leaves something out" if rank < exact else ""
        return found if self.request.dtype in (None, "f32") else f"{found}; rounded once, to {self.request.dtype}"

    def commands(self, planned: Planned, folder: Path) -> Sequence[str]:
        """How servers are started with it."""
        places = {name: folder / name if len(planned.names) > 1 else folder for name in planned.names}
        named = {name: str(place) for name, place in places.items()}
        return server_commands(self.request.to, self.request.form, self.named, named, planned.rank)
