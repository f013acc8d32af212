"""Loading a base model, its tokenizer and its configuration."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from malora_cli.adapters.quick import quicken
from malora_cli.errors import ModelError
from malora_cli.modeling.attention import attend_within_examples, attends_within_examples
from malora_cli.modeling.device import dtype_of, own_device
from malora_cli.modeling.finding import LOADING_ERRORS, BaseModel, unavailable
from malora_cli.modeling.loss import note_plain_head, reads_across_examples
from malora_cli.modeling.memory import out_of_memory
from malora_cli.modeling.quantised import keep_trainable, quantisation
from malora_cli.modeling.reason import does_not_fit, first_line
from malora_cli.modeling.template_file import read_template
from malora_cli.recipe import ModelSettings


def _arguments(base: BaseModel, settings: ModelSettings) -> dict[str, Any]:
    return {"revision": base.commit or "main", "trust_remote_code": settings.trust_remote_code}


def _placement(settings: ModelSettings) -> dict[str, str] | None:
    """Straight onto the GPU, not by way of the host's memory; a map that names a CPU is to PEFT one of offloading."""
    device = own_device(settings.device)
    return None if device.type == "cpu" and settings.quantise is None else {"": str(device)}


def load_tokenizer(base: BaseModel, settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with or without tokens for padding and the end.

    Raises:
        ModelError: It cannot be had, or the chat template of the recipe cannot.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.location, **_arguments(base, settings))
    except LOADING_ERRORS as error:
        raise unavailable(base.name, error) from error
    if settings.chat_template is not None:
        tokenizer.chat_template = read_template(settings.chat_template)
    return tokenizer


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
    where = f"model '{base.name}'"
    try:
        base.check_weights()
        model, found = AutoModelForCausalLM.from_pretrained(
            base.location,
            dtype=getattr(torch, dtype_of(settings)),
            attn_implementation=settings.attention,
            use_safetensors=True,
            output_loading_info=True,
            device_map=_placement(settings),
            **quantisation(settings),
            **_arguments(base, settings),
        )
    except LOADING_ERRORS as error:
        raise unavailable(base.name, error) from error
    if found["missing_keys"]:  # transformers would go on with random ones
        missing = sorted(found["missing_keys"])
        raise ModelError(f"{len(missing)} of its weights are missing, as {missing[0]}", where=where)
    if settings.quantise is not None:
        keep_trainable(model)
    if quick:
        quicken(model)
        attend_within_examples(model)
    try:
        across = _reads_across(model)
        note_plain_head(model)
    except LOADING_ERRORS as error:
        if out_of_memory(error):
            raise does_not_fit("it", error, where=where) from error
        raise ModelError(f"a row of tokens cannot go through it ({first_line(error)})", where=where) from error
    if across:
        raise ModelError(
            f"a '{model.config.model_type}' model reads across the examples of a batch, which stand in one row",
            where=where,
            fix="Take one whose attention keeps them apart, such as a Llama, Mistral, Qwen, Gemma, Phi or GPT-2.",
        )
    return model


def _reads_across(model: PreTrainedModel) -> bool:
    """Whether a model cannot tell examples apart; one that does not hand the row on to its layers goes by a mask."""
    if attends_within_examples(model):
        with suppress(*LOADING_ERRORS):
            if not reads_across_examples(model):
                return False
        model.set_attn_implementation("sdpa")
    return reads_across_examples(model)


def load_config(base: BaseModel, settings: ModelSettings) -> PreTrainedConfig:
    """The model's configuration.

    Raises:
        ModelError: It cannot be had.
    """
    try:
        return AutoConfig.from_pretrained(base.location, **_arguments(base, settings))
    except LOADING_ERRORS as error:
        raise unavailable(base.name, error) from error


def empty_base(base: BaseModel, settings: ModelSettings) -> PreTrainedModel:
    """The base model without weights, on the meta device: enough to count parameters, in no time and no memory.

    Raises:
        ModelError: Its configuration cannot be had.
    """
    config = load_config(base, settings)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=settings.trust_remote_code)
    except LOADING_ERRORS as error:
        raise unavailable(base.name, error) from error
