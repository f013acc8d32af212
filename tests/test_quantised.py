"""Adapters on a base model whose linears are quantised to 4 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, PreTrainedModel

from malora_cli import MaloraConfig, MoloraConfig
from malora_cli.adapters.layer import MixtureLinear
from tiny_models import randomise, tokens

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

IDS = tokens(2, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose sizes are whole blocks of the quantisation."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    path = tmp_path_factory.mktemp("base")
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def quantised(folder: Path) -> PreTrainedModel:
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    # In evaluation on a CPU bitsandbytes packs its weights into a form that has no backward pass, for good.
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=how).train()


@pytest.mark.parametrize("config", [MaloraConfig, MoloraConfig])
def test_trains_on_four_bits_and_comes_back(config: type, folder: Path, tmp_path: Path) -> None:
    base = quantised(folder)
    with torch.no_grad():
        expected = base(input_ids=IDS).logits
    model = get_peft_model(base, config(task_type="CAUSAL_LM"))
    layer = next(module for module in model.modules() if isinstance(module, MixtureLinear))
    assert isinstance(layer.base_layer, bitsandbytes.nn.Linear4bit)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, expected)
    randomise(model, scale=0.1)
    model(input_ids=IDS, labels=IDS).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if "malora_" in name}
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(quantised(folder), tmp_path).eval()
    with torch.no_grad():
        ours = model.eval()(input_ids=IDS).logits
        assert not torch.allclose(ours, expected, atol=1e-3)
        assert torch.equal(loaded(input_ids=IDS).logits, ours)
