"""Writing a bundle."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from malora_cli.export.bundle.architecture import Architecture
from malora_cli.export.bundle.experts import routed_linears, section_of, weights_of
from malora_cli.export.bundle.refusals import not_bundled
from malora_cli.export.bundle.shards import Stored, base_shards, dtype_of, write_index, write_shards
from malora_cli.export.formats.hf import folder_of
from malora_cli.modeling import BaseModel
from malora_cli.results import read_json, write_json, write_text

EXPERTS = "malora.safetensors"
#: Beside the weights of a base model, in whatever case: they go where the weights go.
_TERMS = ("license", "licence", "notice")


@dataclass(frozen=True)
class Bundle:
    """What was written.

    Args:
        shards: The files of the base model's weights.
        unchanged: Whether they are the base's own files, byte for byte; not those of a GGUF file.
    """

    shards: list[str]
    unchanged: bool


@torch.no_grad()
def write_bundle(model: PeftModel, base: BaseModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Bundle:
    """Write a routed model as a folder that transformers loads by itself, with ``trust_remote_code=True``.

    Args:
        model: The wrapped model; its active adapter is written.
        base: The base model, whose files are copied.
        tokenizer: Its tokenizer, with the chat template of the run.
        folder: Where to, empty or not there yet.

    Raises:
        ModelError: The model is no mixture on a text model of transformers' own, or is quantised.
        OSError: The folder cannot be written.
    """
    causal = model.get_base_model()
    architecture = Architecture.of(causal, base.name)
    linears, adapter = routed_linears(model, base.name), model.active_adapter
    source = folder_of(base)
    files = base_shards(source)
    _check_names(causal, {name for file in files for name in Stored.of(file).dtypes}, base)
    folder.mkdir(parents=True, exist_ok=True)
    shards = write_shards(files, source, folder, causal.dtype if base.gguf else None)
    save_file(weights_of(linears, adapter), folder / EXPERTS, metadata={"format": "pt"})
    write_index(folder, [*shards, Stored.of(folder / EXPERTS)])
    settings = _settings(read_json(source / CONFIG_NAME), dtype_of(shards), converted=base.gguf is not None)
    section = section_of(linears, adapter, f"{causal.base_model_prefix}.")
    write_json(folder / CONFIG_NAME, {**settings, **architecture.settings(), "malora": section})
    for name, text in architecture.code():
        write_text(folder / name, text)
    tokenizer.save_pretrained(folder)
    _copy_others(source, folder)
    return Bundle([shard.name for shard in shards], unchanged=base.gguf is None)


def _settings(config: dict[str, Any], dtype: str | None, *, converted: bool) -> dict[str, Any]:
    """The base's ``config.json``, with the number format that its weights have in the bundle."""
    left_out = ("transformers_weights", "_name_or_path", *(("torch_dtype", "dtype") if converted else ()))
    settings = {key: value for key, value in config.items() if key not in left_out}
    # Left to itself, transformers goes by whichever file it opens first, and the experts are float32.
    if dtype is not None and not {"dtype", "torch_dtype"} & settings.keys():
        settings["dtype"] = dtype
    return settings


def _check_names(causal: PreTrainedModel, stored: set[str], base: BaseModel) -> None:
    """Make sure that the files hold every weight under the name that transformers' class has for it.

    Where they do not, transformers translates for its own classes alone.
    """
    tied = {name for pair in causal.all_tied_weights_keys.items() for name in pair}
    own = {name.replace(".base_layer.", ".") for name in causal.state_dict() if ".malora_" not in name} - tied
    prefix = f"{causal.base_model_prefix}."
    missing = sorted(name for name in own if name not in stored and name.removeprefix(prefix) not in stored)
    if missing:
        what = f"{len(missing)} of its weights have other names in its files than in transformers, as {missing[0]}"
        raise not_bundled(what, base.name)


def _copy_others(source: Path, folder: Path) -> None:
    """What else goes with the weights: settings of generation, and the terms of the licence."""
    for file in source.iterdir():
        if file.is_file() and (file.name == GENERATION_CONFIG_NAME or file.name.lower().startswith(_TERMS)):
            shutil.copyfile(file, folder / file.name)
