"""Which models are taken: those of which an example in a row is what it is whatever stands before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from malora_cli.data.batch import TrainExample, collate
from malora_cli.errors import ModelError
from malora_cli.modeling import base as base_module
from malora_cli.modeling import load_base, resolve_base
from malora_cli.modeling.loss import note_plain_head, reads_across_examples, token_nats
from malora_cli.recipe import ModelSettings
from tiny_models import COMMON, tiny, tokens

_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

#: A state, a short convolution, or positions and masks that do not go by the position ids.
ACROSS: dict[str, dict[str, Any]] = {
    "FalconH1Config": {**_MAMBA, "mamba_d_ssm": 64, "head_dim": 8},
    "Lfm2Config": {"layer_types": ["conv", "full_attention"]},
    "Qwen3NextConfig": {
        **_LINEAR,
        **_MOE,
        "head_dim": 8,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "JambaConfig": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "BambaConfig": {**_MAMBA, "attn_layer_indices": [1]},
    "RecurrentGemmaConfig": {"lru_width": 32, "head_dim": 8, "block_types": ["recurrent", "attention"]},
    "MiniMaxConfig": {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 4},
    "BioGptConfig": {},
    "FalconConfig": {},
    "OPTConfig": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "NemotronHConfig": {
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "head_dim": 8,
        "hybrid_override_pattern": "M*",
    },
    "GptOssConfig": {"head_dim": 8, "num_local_experts": 4, "sliding_window": 4},
}
APART: dict[str, dict[str, Any]] = {
    "LlamaConfig": {},
    "MistralConfig": {"sliding_window": 4},
    "Qwen2Config": {},
    "Qwen3Config": {"head_dim": 8},
    "GemmaConfig": {"head_dim": 8},
    "Gemma2Config": {"head_dim": 8, "sliding_window": 4},
    "Gemma3TextConfig": {"head_dim": 8, "sliding_window": 4},
    "PhiConfig": {},
    "Phi3Config": {},
    "StableLmConfig": {},
    "GPT2Config": {"n_embd": 32, "n_head": 4, "n_positions": 128},
    "GPTNeoXConfig": {},
    "GraniteConfig": {},
    "CohereConfig": {},
    "Cohere2Config": {"sliding_window": 4},
    "Olmo2Config": {},
    "SmolLM3Config": {},
    "Exaone4Config": {"sliding_window": 4},
    "Starcoder2Config": {},
    "Glm4Config": {"head_dim": 8},
    "MixtralConfig": {"num_local_experts": 4},
    "Qwen3MoeConfig": {**_MOE, "head_dim": 8},
}
_EAGER = {"GptOssConfig", "Gemma2Config"}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def model_of(config: str, own: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    """A tiny one with the weights that transformers gives it: small ones, through which little gets across."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = "eager" if config in _EAGER else "sdpa"
        settings = getattr(transformers, config)(**{**COMMON, **own})
        return AutoModelForCausalLM.from_config(settings, attn_implementation=attention).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", ACROSS)
def test_a_model_that_reads_across_is_found_out(config: str, dtype: torch.dtype) -> None:
    assert reads_across_examples(model_of(config, ACROSS[config], dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", APART)
def test_a_model_that_keeps_examples_apart_is_taken(config: str, dtype: torch.dtype) -> None:
    model = model_of(config, APART[config], dtype).train()
    assert not reads_across_examples(model)
    assert model.training


def test_an_overflow_is_not_taken_for_reading_across() -> None:
    model = tiny("llama", dtype=torch.float16)
    nn.init.constant_(model.model.norm.weight, 6e4)
    assert not model(tokens(1, 8)).logits.isfinite().all()
    assert not reads_across_examples(model)


def _loaded(folder: Path, **settings: str) -> PreTrainedModel:
    model = ModelSettings(base=str(folder), **settings)  # type: ignore[arg-type]
    return load_base(resolve_base(model), model)


def test_what_it_reads_across_changes_losses_and_it_is_refused(tmp_path: Path) -> None:
    model = tiny("falcon")
    examples = [TrainExample(tokens(9, seed=seed).tolist(), [(3, 9)], 0) for seed in range(2)]
    with torch.no_grad():
        together = token_nats(model, collate(examples))
        alone = torch.cat([token_nats(model, collate([example])) for example in examples])
    assert (together - alone).abs().max() > 0.01
    model.save_pretrained(tmp_path)
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(ModelError, match="a 'falcon' model reads across the examples of a batch") as error:
            _loaded(tmp_path, dtype=dtype)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [RuntimeError("no such kernel\nat line 3"), NotImplementedError("no such kernel")])
def test_a_model_that_takes_no_row_is_one_line(
    error: Exception, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_model: PreTrainedModel) -> bool:
        raise error

    monkeypatch.setattr(base_module, "reads_across_examples", fail)
    with pytest.raises(ModelError, match=r"a row of tokens cannot go through it \(no such kernel\)$"):
        _loaded(tiny_model)


def test_a_head_that_hands_out_float32_is_looked_at_all_the_same() -> None:
    """As NemotronH's does in half precision."""
    model = tiny("llama", dtype=torch.bfloat16)
    forward = type(model).forward

    def in_float32(self: PreTrainedModel, *args: Any, **inputs: Any) -> Any:
        output = forward(self, *args, **inputs)
        output.logits = output.logits.float()
        return output

    in_float32.__wrapped__ = forward  # type: ignore[attr-defined]
    model.__class__ = type("InFloat32", (type(model),), {"forward": in_float32})
    note_plain_head(model)
    batch = collate([TrainExample(tokens(9).tolist(), [(3, 9)], 0)])
    whole = token_nats(model, batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("malora_cli.modeling.loss.LOGITS_BYTES", 2 * 97 * 4)
        torch.testing.assert_close(token_nats(model, batch), whole, atol=1e-2, rtol=1e-2)
