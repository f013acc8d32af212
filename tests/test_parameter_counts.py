"""The paper's parameter counts, exactly, on LLaMA-2 7B without its weights."""

from __future__ import annotations

from collections.abc import Callable
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
        ("hydralora", {}, 146_178_048, "2.12"),
        ("mixlora", {}, 145_227_776, "2.11"),
        ("mola", {}, 94_494_720, "1.38"),
        ("malora-fixed-subspace", {}, 166_133_760, "2.41"),
        ("malora-frozen-coefficients", {}, 158_269_440, "2.29"),
        ("malora-symmetric", {}, 151_977_984, "2.21"),
        ("malora-unshared-subspace", {}, 158_343_168, "2.30"),
        ("malora-decomposed-up", {}, 144_703_488, "2.10"),
        ("molora-same-init", {}, 222_756_864, "3.20"),
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


#: in_features and out_features of the linears that the paper adapts, in one layer.
LINEARS = [(4096, 4096)] * 3 + [(4096, 11008)] * 2 + [(11008, 4096)]


@pytest.mark.parametrize(
    ("method", "of_linear"),
    [
        ("hydralora", lambda i, o: 24 * i + 4 * 24 * o + 4 * i),
        ("mixlora", lambda i, o: 8 * 8 * (i + o)),
        ("malora-fixed-subspace", lambda i, o: 8 * 16 * 32 + 8 * 16 * o + 8 * i),
        ("malora-frozen-coefficients", lambda i, o: 32 * i + 8 * 12 * o + 8 * i),
        ("malora-symmetric", lambda i, o: 64 * i + 8 * 8 * 64 + 8 * 8 * o + 8 * i),
        ("malora-unshared-subspace", lambda i, o: 8 * 4 * i + 8 * 12 * 4 + 8 * 12 * o + 8 * i),
        ("malora-decomposed-up", lambda i, o: 8 * 12 * i + 8 * 12 * 32 + 32 * o + 8 * i),
    ],
)
def test_counts_follow_from_the_shapes(method: str, of_linear: Callable[[int, int], int]) -> None:
    routers_of_blocks = 2 * 8 * 4096 if method == "mixlora" else 0  # attention and feed-forward, 8 experts
    expected = MODULES * (sum(of_linear(i, o) for i, o in LINEARS) + routers_of_blocks)
    assert count_parameters(wrap(llama2_7b(), METHODS[method]())).trainable == expected


def test_mola_has_more_experts_in_the_upper_quarters() -> None:
    expected = sum(8 * n * (8 * (i + o) + i) for n in (2, 4, 6, 8) for i, o in LINEARS)
    assert count_parameters(wrap(llama2_7b(), METHODS["mola"]())).trainable == expected


def test_reduction_against_molora_is_the_papers() -> None:
    """ "30% to 48% fewer": against MoLoRA of ranks 12 and 16, routers left out."""

    def without_routers(method: str, **settings: Any) -> int:
        model = wrap(llama2_7b(), METHODS[method](**settings))
        return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and "router" not in name)

    ours = without_routers("malora")
    assert f"{1 - ours / without_routers('molora', r=12):.3f}" == "0.298"
    assert f"{1 - ours / without_routers('molora', r=16):.3f}" == "0.473"
