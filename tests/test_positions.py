"""Positions that end, and RoPE that depends on the longest row: rows packed together would change one another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from malora_cli.data.batch import Packer, TrainExample, collate
from malora_cli.data.encoding import Encoder
from malora_cli.errors import ModelError
from malora_cli.evals.evaluate import Wanted, evaluate_run
from malora_cli.evals.predict import predict
from malora_cli.modeling.loss import token_nats
from malora_cli.modeling.positions import check_positions, check_rows, most_positions
from malora_cli.train.materials import gather, prepare_model
from tiny_models import COMMON, tiny, tokens
from train_runs import load, rewrite, train_run, workplace

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


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_row_beyond_the_last_position_is_refused(kind: str) -> None:
    model = tiny(kind)
    check_rows(model, 128)
    model(input_ids=tokens(1, 128))
    with pytest.raises(IndexError):
        model(input_ids=tokens(1, 129))
    with pytest.raises(ModelError) as error:
        check_rows(model, 129)
    assert str(error.value) == (
        "train.max_length: the longest row has 129 tokens, and this model has positions for 128. Set it to at most 128;"
        " a task's too_long says what becomes of longer rows."
    )


def test_a_row_longer_than_a_model_was_made_for_is_told() -> None:
    assert most_positions(tiny("llama")) is None
    assert most_positions(AutoModelForCausalLM.from_config(CONFIGS["longrope"]())) == 32
    with pytest.warns(UserWarning, match=r"the longest row has 129 tokens, and the model was made for 128 \(max_pos"):
        check_rows(tiny("llama"), 129)


def test_the_longest_row_of_the_data_counts(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    rewrite(folder / "config.json", lambda config: config.update(max_position_embeddings=20))
    recipe = load(workplace(tmp_path / "work", folder)).recipe
    with pytest.warns(UserWarning, match=r"the longest row has \d+ tokens, and the model was made for 20"):
        prepare_model(recipe, gather(recipe))


@torch.no_grad()
def test_answers_take_the_positions_there_are_whatever_they_are_batched_with(tiny_model: Path) -> None:
    """GPT-2 has no place for more, and no end or padding token is needed, nor an embedding of the one there is."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token, tokenizer.eos_token, tokenizer.chat_template = "<pad>", None, None
    model = tiny("gpt2")
    prompts = [tokens(length, seed=length).tolist() for length in (3, 122, 125, 128, 125)]
    room = [9, 7, 4, 1, 4]
    expected = []
    for prompt, length in zip(prompts, room, strict=True):
        ids = list(prompt)
        for _ in range(length):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True))
    assert predict(model, Encoder(tokenizer), prompts, max_new_tokens=9, batch=Packer(4)) == expected


def test_a_tokenizer_without_end_and_padding_trains_and_answers_and_is_told_of(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    rewrite(folder / "tokenizer_config.json", lambda config: (config.pop("eos_token"), config.pop("pad_token")))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    recipe = workplace(tmp_path / "work", folder)
    settings = ["model.chat_template=plain", "train.steps=1", "train.eval_rows=1", "method={name: lora, r: 2}"]
    with pytest.warns(UserWarning, match=r"the tokenizer has no end token \(eos_token\), and the chat template ends"):
        record = train_run(recipe, *settings)
    result = evaluate_run(record, load(recipe, *settings).recipe, Wanted(limit=2))
    assert {task.rows for task in result.tasks.values()} == {2}
