"""The mixture methods as PEFT adapters: initial values, configuration, saving, several adapters, architectures."""

from __future__ import annotations

import copy
import json
import math
import threading
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from safetensors import safe_open
from torch import nn

from malora_cli import MaloraConfig, MoloraConfig
from malora_cli.adapters.initialisation import kaiming_uniform, shared_subspace
from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.structure import IndependentExperts
from tiny_models import LAYERS, gemma3_with_pictures, randomise, tiny, tokens

SIZES = {"in_features": 64, "num_experts": 3, "r": 4, "subspace_rank": 8}


def config(**changes: Any) -> MaloraConfig:
    settings = {"r": 12, "subspace_rank": 32, "num_experts": 8, "top_k": 2, "lora_alpha": 24, "lora_dropout": 0.05}
    return MaloraConfig(task_type="CAUSAL_LM", **(settings | changes))


def wrapped(kind: str = "llama", **changes: Any) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(tiny(kind), config(**changes))
    randomise(model)
    return model.eval()


def adapted(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, MixtureLinear)}


# Initial values, Eq. 8-10

#: Of products and decompositions over 64 entries of a size of at most 1.
ROUNDING = 64 * torch.finfo(torch.float32).eps


def test_expert_zero_starts_at_loras_own_draw() -> None:
    torch.manual_seed(3)
    draw = kaiming_uniform(3, 8, 64)
    torch.manual_seed(3)
    start = shared_subspace(**SIZES, beta=1.3)
    torch.testing.assert_close(start.coefficient_ERS[0] @ start.down_SI, draw[0, :4], atol=ROUNDING, rtol=0)
    for t in (1, 2):  # the others have their own U and Sigma, in the frame of V_0
        u, sigma, _ = torch.linalg.svd(draw[t], full_matrices=False)
        v_0 = torch.linalg.svd(draw[0], full_matrices=False)[2]
        expected = (u * sigma)[:4] @ v_0
        torch.testing.assert_close(start.coefficient_ERS[t] @ start.down_SI, expected, atol=ROUNDING, rtol=0)


def test_the_product_does_not_depend_on_beta_and_the_factors_do() -> None:
    starts = []
    for beta in (0.3, 5.0):
        torch.manual_seed(0)
        starts.append(shared_subspace(**SIZES, beta=beta))
    products = [start.coefficient_ERS @ start.down_SI for start in starts]
    torch.testing.assert_close(*products, atol=ROUNDING, rtol=0)
    for beta, start in zip((0.3, 5.0), starts, strict=True):
        directions = start.down_SI / beta
        torch.testing.assert_close(directions @ directions.T, torch.eye(8), atol=ROUNDING, rtol=0)


def test_entries_vary_like_loras() -> None:
    torch.manual_seed(0)
    n = 256
    start = shared_subspace(n, num_experts=8, r=12, subspace_rank=32, beta=2.0)
    variance = (start.coefficient_ERS @ start.down_SI).var().item()
    assert variance == pytest.approx(1 / (3 * n), rel=0.05)
    a = IndependentExperts(n, n, 8, 12).start()["down"]
    assert a.shape == (96, n)
    assert a.var().item() == pytest.approx(1 / (3 * n), rel=0.05)
    assert a.abs().max() <= 1 / math.sqrt(n)


def test_a_subspace_wider_than_the_input_is_all_of_it() -> None:
    torch.manual_seed(1)
    draw = kaiming_uniform(2, 8, 5)
    torch.manual_seed(1)
    start = shared_subspace(5, num_experts=2, r=6, subspace_rank=8, beta=1.0)
    assert start.down_SI.shape == (8, 5)
    assert start.coefficient_ERS.shape == (2, 6, 8)
    torch.testing.assert_close(start.coefficient_ERS[0] @ start.down_SI, draw[0, :6], atol=ROUNDING, rtol=0)
    assert not start.down_SI[5:].any()
    assert not start.coefficient_ERS[..., 5:].any()


def test_layer_starts_from_the_draw_with_b_at_zero() -> None:
    torch.manual_seed(0)
    model = get_peft_model(tiny("llama"), config(r=4, subspace_rank=8, num_experts=3, target_modules=["q_proj"]))
    torch.manual_seed(0)
    start, router = shared_subspace(32, num_experts=3, r=4, subspace_rank=8, beta=1.0), kaiming_uniform(3, 32)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert torch.equal(layer.malora_down["default"], start.down_SI)
    assert torch.equal(layer.malora_coefficient["default"], start.coefficient_ERS.flatten(0, 1))
    assert torch.equal(layer.malora_router["default"], router)
    assert not layer.malora_up["default"].any()


def test_drawing_in_several_threads_leaves_the_number_of_threads_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    draw = partial(shared_subspace, **SIZES, beta=1.0)
    workers = [threading.Thread(target=draw) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    draw()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


# Configuration


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subspace_rank": 8}, "subspace_rank 8 is below r 12"),
        ({"top_k": 9}, "top_k 9 is above num_experts 8"),
        ({"r": 0}, "r must be a whole number of at least 1, not 0"),
        ({"num_experts": -1, "top_k": 0}, "num_experts must be .* not -1; top_k must be"),
        ({"subspace_rank": 0}, "subspace_rank must be a whole number"),
        ({"r": 8.5}, "r must be a whole number of at least 1, not 8.5"),
        ({"lora_alpha": 0}, "lora_alpha must be above 0"),
        ({"lora_dropout": 1.0}, r"lora_dropout must lie in \[0, 1\)"),
        ({"balance_factor": -0.1}, "balance_factor must be at least 0"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"beta": math.nan}, "beta must be above 0"),
    ],
)
def test_wrong_numbers_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"MaloraConfig: .*{message}"):
        MaloraConfig(**settings)


# The adapted model


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3_text", "mistral", "phi", "gpt2"])
def test_every_linear_but_the_attention_output_is_adapted_and_nothing_changes_at_first(kind: str) -> None:
    base, ids = tiny(kind), tokens(2, 7)
    expected = base(input_ids=ids).logits
    model = get_peft_model(base, config())
    assert torch.equal(model(input_ids=ids).logits, expected)

    prefix = "base_model.model.transformer.h" if kind == "gpt2" else "base_model.model.model.layers"
    split = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
    names = {
        "gpt2": {"attn.c_attn", "mlp.c_fc", "mlp.c_proj"},
        "phi": split | {"mlp.fc1", "mlp.fc2"},
    }.get(kind, split | {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"})
    assert adapted(model) == {f"{prefix}.{layer}.{name}" for layer in range(LAYERS) for name in names}

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".malora_" in name}
    randomise(model)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if name in trained)
    assert not torch.allclose(model.eval()(input_ids=ids).logits, expected, atol=1e-3)


def test_conv1d_is_a_linear_with_its_sides_exchanged() -> None:
    layer = wrapped("gpt2", target_modules=["c_fc"]).base_model.model.transformer.h[0].mlp.c_fc
    x = torch.randn(3, 32)
    assert (layer.in_features, layer.out_features) == (32, 128)
    assert layer(x).shape == (3, 128)


def test_a_picture_tower_is_left_alone() -> None:
    model = get_peft_model(gemma3_with_pictures(), config())
    assert len(adapted(model)) == 6 * LAYERS
    assert all("language_model" in name for name in adapted(model))


@pytest.mark.parametrize("target", ["embed_tokens", "input_layernorm"])
def test_what_is_no_linear_is_refused(target: str) -> None:
    with pytest.raises(TypeError, match=f"{target}: .* is not a linear layer; leave it out of target_modules"):
        get_peft_model(tiny("llama"), config(target_modules=["q_proj", target]))


def test_targets_that_match_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        get_peft_model(tiny("llama"), config(target_modules=["nonsense"]))
    with pytest.raises(ValueError, match="of a 'custom' model to adapt is not known; set target_modules"):
        get_peft_model(nn.Sequential(nn.Linear(2, 2)), MaloraConfig())


def test_targets_are_pefts_own_where_the_paper_has_none() -> None:
    names = adapted(get_peft_model(tiny("stablelm"), config()))
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}
    every = adapted(get_peft_model(tiny("stablelm"), config(target_modules="all-linear")))
    assert {name.rpartition(".")[2] for name in every} >= {"o_proj", "down_proj"}
    assert not any("lm_head" in name for name in every)


def test_layers_can_be_chosen_and_excluded() -> None:
    model = get_peft_model(tiny("llama"), config(layers_to_transform=[1], exclude_modules=["down_proj"]))
    assert len(adapted(model)) == 5
    assert all(".layers.1." in name for name in adapted(model))


# Saving and loading


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [MaloraConfig, MoloraConfig])
def test_a_saved_adapter_comes_back_bit_by_bit(make: Any, dtype: Any, low_memory: bool, tmp_path: Path) -> None:
    model = get_peft_model(tiny("llama", dtype=dtype), make(task_type="CAUSAL_LM")).eval()
    randomise(model)
    ids = tokens(2, 9)
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not list(tmp_path.glob("*.bin"))
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        kinds = {name.rpartition(".")[2] for name in file.keys()}  # noqa: SIM118 - no mapping
    expected = {"malora_down", "malora_up", "malora_router"}
    assert kinds == expected | ({"malora_coefficient"} if make is MaloraConfig else set())

    loaded = PeftModel.from_pretrained(tiny("llama", dtype=dtype), tmp_path, low_cpu_mem_usage=low_memory)
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    values = dict(model.named_parameters())
    for name, parameter in loaded.named_parameters():
        assert not parameter.requires_grad
        assert torch.equal(parameter, values[name])
    again = PeftModel.from_pretrained(tiny("llama", dtype=dtype), tmp_path, is_trainable=True)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {n for n in values if ".malora_" in n}


def test_the_saved_configuration_is_json_that_peft_reads(tmp_path: Path) -> None:
    wrapped(target_modules=["q_proj", "up_proj"], beta=1.25, renormalize=False).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert (raw["peft_type"], raw["r"], raw["subspace_rank"], raw["beta"]) == ("MALORA", 12, 32, 1.25)
    read = peft.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(read, MaloraConfig)
    assert (read.beta, read.renormalize, read.target_modules) == (1.25, False, {"q_proj", "up_proj"})


def test_an_adapter_may_be_named_like_the_method(tmp_path: Path) -> None:
    model = get_peft_model(tiny("llama"), config(), adapter_name="malora").eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny("llama"), tmp_path / "malora", adapter_name="malora")
    ids = tokens(1, 5)
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_modules_to_save_are_trained_and_saved_whole(tmp_path: Path) -> None:
    model = wrapped(modules_to_save=["lm_head"])
    head = model.base_model.model.lm_head.modules_to_save["default"]
    assert head.weight.requires_grad
    nn.init.normal_(head.weight)
    model.save_pretrained(tmp_path)
    ids = tokens(1, 5)
    loaded = PeftModel.from_pretrained(tiny("llama"), tmp_path)
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_several_adapters_are_set_disabled_and_deleted() -> None:
    ids, base = tokens(1, 6), tiny("llama")
    plain = base(input_ids=ids).logits
    model = get_peft_model(base, config()).eval()
    model.add_adapter("other", config(r=4, subspace_rank=6, num_experts=4))
    randomise(model)
    layer = next(module for module in model.modules() if isinstance(module, MixtureLinear))
    first = model(input_ids=ids).logits
    model.set_adapter("other")
    second = model(input_ids=ids).logits
    trained = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"other"}
    assert not torch.allclose(first, second, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, plain)
    assert torch.equal(model(input_ids=ids).logits, second)
    model.base_model.set_adapter(["default", "other"])
    x = torch.randn(4, layer.in_features)
    both = layer(x)
    parts = []
    for name in ("default", "other"):
        layer.set_adapter(name)
        parts.append(layer(x) - layer.base_layer(x))
    torch.testing.assert_close(both, layer.base_layer(x) + parts[0] + parts[1])
    model.set_adapter("default")
    model.delete_adapter("other")
    assert torch.equal(model(input_ids=ids).logits, first)
    assert not any("other" in name for name, _ in model.named_parameters())
    assert "other" not in layer.malora_config


def test_a_copy_is_independent() -> None:
    model, ids = wrapped(), tokens(1, 6)
    twin = copy.deepcopy(model)
    before = model(input_ids=ids).logits
    assert torch.equal(twin(input_ids=ids).logits, before)
    randomise(twin, seed=5)
    assert not torch.equal(twin(input_ids=ids).logits, before)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_merging_is_refused_with_the_command_that_exports() -> None:
    model = wrapped()
    for merge in (model.merge_and_unload, model.merge_adapter, model.base_model.unmerge_adapter):
        with pytest.raises(ValueError, match=r"no single merged weight.*`malora merge-export RUN"):
            merge()
    base = model.unload()
    assert not adapted(base)
    assert torch.equal(base(input_ids=tokens(1, 4)).logits, tiny("llama")(input_ids=tokens(1, 4)).logits)


def test_hotswapping_is_refused_for_what_it_cannot_swap(tmp_path: Path) -> None:
    model = wrapped()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but MALORA was passed"):
        hotswap_adapter(model, str(tmp_path), adapter_name="default")
    with pytest.raises(ValueError, match="No adapter layers found"):
        prepare_model_for_compiled_hotswap(model, target_rank=16)


def test_meta_device_takes_no_draw() -> None:
    with torch.device("meta"):
        base = type(tiny("llama"))(tiny("llama").config)
    state = torch.get_rng_state()
    model = get_peft_model(base, config())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.is_meta for parameter in model.parameters())
