"""The paper's parameter counts, exactly, on LLaMA-2 7B without its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from malora_cli.adapters.methods import METHODS
from malora_cli.modeling import count_parameters, parameter_table, wrap

BASE = 6_738_415_616
MODULES = 32


def llama2_7b() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=MODULES,
        num_attention_heads=32,
        num_key_value_heads=32,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


@pytest.mark.parametrize(
    ("method", "settings", "trainable", "percent"),
    [
        ("lora", {}, 143_130_624, "2.08"),
        ("dora", {}, 144_359_424, "2.10"),
        ("rslora", {}, 143_130_624, "2.08"),
        ("asylora", {}, 157_286_400, "2.28"),
        ("moasylora", {}, 165_347_328, "2.40"),
        ("molora", {}, 151_191_552, "2.19"),
        ("molora", {"r": 12}, 222_756_864, "3.20"),
        ("molora", {"r": 16}, 294_322_176, "4.19"),
        ("malora", {}, 158_859_264, "2.30"),
        ("malora-small", {}, 109_142_016, "1.59"),
    ],
)
def test_counts_are_the_papers(method: str, settings: dict[str, Any], trainable: int, percent: str) -> None:
    model = wrap(llama2_7b(), METHODS[method](**settings))
    count = count_parameters(model)
    assert count.trainable == trainable
    assert count.base == BASE
    assert f"{count.percent:.2f}" == percent
    table = parameter_table(model)
    assert set(table) == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}
    assert {modules for modules, _ in table.values()} == {MODULES}
    assert sum(parameters for _, parameters in table.values()) == trainable


def test_reduction_against_molora_is_the_papers() -> None:
    """ "30% to 48% fewer": against MoLoRA of ranks 12 and 16, routers left out."""

    def without_routers(method: str, **settings: Any) -> int:
        model = wrap(llama2_7b(), METHODS[method](**settings))
        return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and "router" not in name)

    ours = without_routers("malora")
    assert f"{1 - ours / without_routers('molora', r=12):.3f}" == "0.298"
    assert f"{1 - ours / without_routers('molora', r=16):.3f}" == "0.473"
