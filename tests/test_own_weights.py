"""Weights that an export takes from the model and not from the base's files: DoRA's, and what few bits stand for."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config

from malora_cli.errors import ModelError
from malora_cli.export.formats import FORMATS, Origin
from malora_cli.export.weights import own_weights
from malora_cli.modeling import BaseModel
from malora_cli.modeling.quantised import dequantised, quantised_linears
from malora_cli.recipe import ModelSettings
from tiny_models import tiny


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dora_is_merged_a_linear_at_a_time_and_leaves_the_model_as_it_was(kind: str, dtype: torch.dtype) -> None:
    targets = ["q_proj", "up_proj"] if kind == "llama" else ["c_attn", "c_fc"]
    config = LoraConfig(r=4, use_dora=True, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(tiny(kind).to(dtype), config)
    before = copy.deepcopy(model.state_dict())
    found = {name: weight() for name, weight in own_weights(model, dora=True).items()}
    after = model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items()), "to the bit"
    assert after.keys() == before.keys()
    merged = model.float().merge_and_unload()
    assert {name.rpartition(".")[2] for name in found} == set(targets)
    for name, weight in found.items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, merged.get_submodule(name).weight.data, atol=1e-5, rtol=1e-5)


def test_a_weight_that_no_file_has_is_an_error(tmp_path: Path) -> None:
    """As that of a head that is tied to the embeddings: DoRA on it would be left out in silence."""
    base = tiny("llama")
    base.save_pretrained(tmp_path / "base")
    (tmp_path / "out").mkdir()
    origin = Origin(BaseModel("tiny", str(tmp_path / "base")), ModelSettings(base="tiny"), base, "tiny")
    weights = {"model.layers.0.mlp.up_proj": lambda: torch.zeros(48, 32), "another.head": lambda: torch.zeros(97, 32)}
    with pytest.raises(ModelError, match=r"1 of the adapted weights are not in its files, as another\.head\.weight"):
        FORMATS["hf"].write("dense", {}, Origin(**{**vars(origin), "weights": weights}), tmp_path / "out")


def test_what_few_bits_stand_for_is_turned_as_the_files_are(tmp_path: Path) -> None:
    """GPT-2 keeps its weights the other way round, and bitsandbytes does not."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=64, n_layer=1, n_head=4, n_positions=32)
    plain = AutoModelForCausalLM.from_config(config)
    plain.save_pretrained(tmp_path)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    linears = quantised_linears(AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=how))
    assert {name.rpartition(".")[2] for name in linears} == {"c_attn", "c_proj", "c_fc"}
    for name, linear in linears.items():
        own, found = plain.get_submodule(name).weight.data, dequantised(linear)
        assert found.shape == own.shape
        assert (found - own).abs().mean() < 0.15 * own.std()
