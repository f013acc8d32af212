"""The models that are asked, loaded only where an answer of theirs is not known."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from peft.utils import CONFIG_NAME
from transformers import PreTrainedModel

from malora_cli.adapters.methods._base import AdapterSettings
from malora_cli.errors import ModelError, RunError
from malora_cli.evals.store import key_of
from malora_cli.modeling import (
    BaseModel,
    base_of_run,
    check_adapter,
    load_adapter,
    load_base,
    resolve_base,
    round_experts,
)
from malora_cli.modeling.device import dtype_of, own_device
from malora_cli.recipe import ModelSettings, Recipe
from malora_cli.results import RunRecord, file_sha256, read_json

_LOG = logging.getLogger(__name__)
#: Libraries whose versions may change an answer.
_LIBRARIES = ("torch", "transformers", "peft")
#: Files of a model, beside its weights, that decide what it computes and where its answers end.
_CONFIGURATION = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class Models:
    """A base model and, where there is one, the adapter on it.

    Args:
        base: The base model.
        settings: How it is loaded.
        adapter: Folder of the adapter.
        method: What the adapter was trained by; as in `load_adapter`.
    """

    base: BaseModel
    settings: ModelSettings
    adapter: Path | None = None
    method: AdapterSettings | None = None

    @classmethod
    def of_run(cls, record: RunRecord, recipe: Recipe, step: int | None = None) -> Models:
        """The base model of a run and its adapter.

        Args:
            record: The run.
            recipe: The run's own.
            step: Take the checkpoint of this step instead of the finished adapter.

        Raises:
            MaloraError: The run is not finished, or the model is not there.
        """
        adapter = record.adapter_at(step)
        base = base_of_run(recipe.model, record.manifest)
        return cls(base, recipe.model, adapter, cast(AdapterSettings, recipe.method))

    @classmethod
    def named(cls, settings: ModelSettings) -> Models:
        """What ``settings.base`` names: a base model, or a folder with an adapter, which names its base.

        Raises:
            ModelError: It is not there.
        """
        folder = Path(settings.base)
        if not (folder / CONFIG_NAME).is_file():
            return cls(resolve_base(settings), settings)
        check_adapter(folder, None)
        base = read_json(folder / CONFIG_NAME).get("base_model_name_or_path")
        fix = f"Write into {folder / CONFIG_NAME}, as base_model_name_or_path, where its base model lies."
        if not isinstance(base, str) or not base:
            raise ModelError("this adapter does not say which model it is for", where=str(folder), fix=fix)
        own = settings.model_copy(update={"base": base})
        try:
            return cls(resolve_base(own), own, folder)
        except ModelError as error:
            raise ModelError(error.what, where=f"the base of {folder}: {error.where}", fix=error.fix or fix) from error

    @cached_property
    def loaded(self) -> PreTrainedModel | PeftModel:
        """The model with its weights, in evaluation mode.

        Raises:
            ModelError: It cannot be had.
            RunError: The adapter is no longer the one that the key is of.
        """
        _LOG.info("loading %s", self.base.name)
        model = load_base(self.base, self.settings)
        if self.adapter is None:
            return model.eval()
        key, loaded = self.adapter_key, load_adapter(model, self.adapter, self.method)
        if key != self._adapter_hash(self.adapter):
            raise RunError("the adapter was rewritten in the meantime", where=str(self.adapter), fix="Evaluate again.")
        return loaded

    @property
    def computing(self) -> PreTrainedModel | PeftModel:
        """The same, to be asked and not kept: it holds experts as they are multiplied."""
        if isinstance(self.loaded, PeftModel):
            round_experts(self.loaded)
        return self.loaded

    @property
    def is_loaded(self) -> bool:
        """Whether the weights were needed."""
        return "loaded" in self.__dict__

    @cached_property
    def base_key(self) -> str:
        """Hash of all that decides what the base model computes."""
        settings = self.settings.model_dump(mode="json", include={"quantise", "attention"})
        settings |= {"dtype": dtype_of(self.settings)}
        weights = self.base.commit or self.base.sha256()
        device = own_device(self.settings.device).type
        libraries = (*_LIBRARIES, *(("bitsandbytes",) if self.settings.quantise is not None else ()))
        return key_of(weights, self._configuration(), settings, device, {name: _version(name) for name in libraries})

    @cached_property
    def adapter_key(self) -> str:
        """Hash of all that decides what the adapter on it computes."""
        return self.base_key if self.adapter is None else self._adapter_hash(self.adapter)

    def _adapter_hash(self, folder: Path) -> str:
        files = sorted(folder.glob("adapter_*"))
        method = None if self.method is None else self.method.model_dump(mode="json")
        return key_of(self.base_key, method, {file.name: file_sha256(file) for file in files})

    def _configuration(self) -> dict[str, str]:
        """Hashes of a folder's settings, and of its Python code where that is run; a hub model's commit has them."""
        if self.base.commit is not None:
            return {}
        folder = Path(self.base.location)
        code = sorted(folder.rglob("*.py")) if self.settings.trust_remote_code else []
        files = (*(folder / name for name in _CONFIGURATION), *code)
        return {file.relative_to(folder).as_posix(): file_sha256(file) for file in files if file.is_file()}


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:  # which is told of where it is needed
        return None


@dataclass(frozen=True)
class Subject:
    """One of the models, as it is asked.

    Args:
        name: ``"base"``, ``"adapter"`` or ``"model"``.
        key: Hash of all that decides its answers to given prompts.
        folder: Where its answers are kept.
        models: Where its weights are.
        plain: Whether it is the base model, the adapter switched off.
        known: Another folder of its answers, which is only read.
    """

    name: str
    key: str
    folder: Path
    models: Models = field(repr=False)
    plain: bool = False
    known: Path | None = None

    @contextmanager
    def asked(self) -> Iterator[Any]:
        """The model with its weights."""
        model = self.models.computing
        if self.plain and isinstance(model, PeftModel):
            with model.disable_adapter():
                yield model
        else:
            yield model
