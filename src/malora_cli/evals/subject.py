"""The models that are asked, loaded only where an answer of theirs is not known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import CONFIG_NAME
from transformers import PreTrainedModel

from malora_cli.adapters.methods._base import AdapterSettings
from malora_cli.evals.store import key_of
from malora_cli.modeling import BaseModel, check_adapter, load_adapter, load_base, resolve_base
from malora_cli.modeling.device import own_device
from malora_cli.recipe import ModelSettings
from malora_cli.results import file_sha256, read_json

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
    def named(cls, settings: ModelSettings) -> Models:
        """What ``settings.base`` names: a base model, or a folder with an adapter, which names its base.

        Raises:
            ModelError: It is not there.
        """
        folder = Path(settings.base)
        if not (folder / CONFIG_NAME).is_file():
            return cls(resolve_base(settings), settings)
        check_adapter(folder, None)
        base = str(read_json(folder / CONFIG_NAME).get("base_model_name_or_path"))
        own = settings.model_copy(update={"base": base})
        return cls(resolve_base(own), own, folder)

    @cached_property
    def loaded(self) -> PreTrainedModel | PeftModel:
        """The model with its weights, in evaluation mode."""
        model = load_base(self.base, self.settings)
        return model.eval() if self.adapter is None else load_adapter(model, self.adapter, self.method)

    @property
    def is_loaded(self) -> bool:
        """Whether the weights were needed."""
        return "loaded" in self.__dict__

    @cached_property
    def base_key(self) -> str:
        """Hash of all that decides what the base model computes."""
        settings = self.settings.model_dump(mode="json", include={"dtype", "quantise", "attention"})
        weights = self.base.commit or self.base.sha256()
        device = own_device(self.settings.device).type
        return key_of(weights, self._configuration(), settings, device, {name: version(name) for name in _LIBRARIES})

    @cached_property
    def adapter_key(self) -> str:
        """Hash of all that decides what the adapter on it computes."""
        if self.adapter is None:
            return self.base_key
        files = sorted(self.adapter.glob("adapter_*"))
        method = None if self.method is None else self.method.model_dump(mode="json")
        return key_of(self.base_key, method, {file.name: file_sha256(file) for file in files})

    def _configuration(self) -> dict[str, str]:
        """Of a folder; a hub model's commit stands for it."""
        if self.base.commit is not None:
            return {}
        files = (Path(self.base.location) / name for name in _CONFIGURATION)
        return {file.name: file_sha256(file) for file in files if file.is_file()}


@dataclass(frozen=True)
class Subject:
    """One of the models, as it is asked.

    Args:
        name: ``"base"``, ``"adapter"`` or ``"model"``.
        key: Hash of all that decides its answers to given prompts.
        folder: Where its answers are kept.
        models: Where its weights are.
        plain: Whether it is the base model, the adapter switched off.
    """

    name: str
    key: str
    folder: Path
    models: Models = field(repr=False)
    plain: bool = False

    @contextmanager
    def asked(self) -> Iterator[Any]:
        """The model with its weights."""
        model = self.models.loaded
        if self.plain and isinstance(model, PeftModel):
            with model.disable_adapter():
                yield model
        else:
            yield model
