"""RoPE that depends on the longest row: rows packed together would change one another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig

from malora_cli.data.batch import TrainExample, collate
from malora_cli.errors import ModelError
from malora_cli.modeling.loss import token_nats
from malora_cli.modeling.positions import check_positions
from malora_cli.train.materials import gather
from tiny_models import COMMON, tokens
from train_runs import load, workplace

_FACTORS = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32, **_FACTORS}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def config(kind: str, rope: dict[str, Any], longest: int = 128, **own: int) -> PreTrainedConfig:
    made = getattr(transformers, kind)(**{**COMMON, "max_position_embeddings": longest, **own}, rope_parameters=rope)
    assert isinstance(made, PreTrainedConfig)
    return made


CONFIGS = {
    "longrope": lambda: config("Phi3Config", LONG, original_max_position_embeddings=32),
    "dynamic": lambda: config("LlamaConfig", DYNAMIC, longest=32),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_rows_beyond_the_original_length_are_refused(kind: str) -> None:
    check_positions(CONFIGS[kind](), 32)
    with pytest.raises(ModelError) as error:
        check_positions(CONFIGS[kind](), 33)
    assert str(error.value) == (
        f"train.max_length: it is 33, and beyond 32 tokens this model's positions ({kind} RoPE) depend on the longest "
        "row of a batch. Set it to at most 32."
    )


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_up_to_that_length_rows_are_as_good_as_alone_and_beyond_it_they_are_not(kind: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.2)

    def change(neighbour: int) -> float:
        one, other = (
            TrainExample(tokens(length, seed=length).tolist(), [(3, length)], 0) for length in (20, neighbour)
        )
        alone_K, together_K = token_nats(model, collate([one])), token_nats(model, collate([one, other]))
        return (together_K[:17] - alone_K).abs().max().item()

    assert change(32) < 1e-4
    assert change(60) > 0.1


def test_other_kinds_may_be_as_long_as_they_like(tiny_model: Path) -> None:
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    check_positions(config("LlamaConfig", plain), 10**6)
    check_positions(transformers.GPT2Config(), 10**6)
    check_positions(config("LlamaConfig", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}), 10**6)
    layers = {"full_attention": DYNAMIC, "sliding_attention": plain}
    with pytest.raises(ModelError, match="dynamic RoPE"):
        check_positions(config("Gemma3TextConfig", layers), 129)


def test_a_recipe_is_refused_before_anything_is_read(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**described, "rope_parameters": DYNAMIC}), encoding="utf-8")
    recipe = workplace(tmp_path / "work", folder)
    with pytest.raises(ModelError, match=r"^train\.max_length: it is 1,024, and beyond 512 tokens"):
        gather(load(recipe).recipe)
    gather(load(recipe, "train.max_length=512").recipe)
