"""How likely choices are: several behind one prompt, against each of them alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from chat_families import NAMES, source_of, tokenizer_of
from malora_cli.data.batch import Packer
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats._base import Example, RowError
from malora_cli.errors import RunError
from malora_cli.evals import choices as choices_module
from malora_cli.evals.choices import choice_nats, unasked
from malora_cli.modeling.attention import PACKED_SDPA
from malora_cli.modeling.loss import token_nats
from presets import routed
from test_memory import limited
from test_reading_across import APART, model_of
from tiny_models import tiny, tokens

#: Prompts and choices of many lengths: of one token, alike, and one the beginning of another.
PROMPTS = [tokens(length, seed=length).tolist() for length in (9, 1, 3, 20)]
CHOICES = [
    [[5, 6, 7], [8], [5, 6], [9, 10, 11, 12, 13]],
    [[5], [6]],
    [[5, 6], [5, 6]],
    [tokens(length, seed=length).tolist() for length in (2, 7, 1)],
]
PRIOR = [4, 5]


@torch.no_grad()
def alone(model: nn.Module, prompt: list[int], choice: list[int]) -> float:
    """A choice behind its prompt, with nothing else in the batch."""
    ids = torch.tensor([[*prompt, *choice]], device=next(model.parameters()).device)
    nats = -model(input_ids=ids).logits[0].double().log_softmax(-1)
    return sum(float(nats[len(prompt) + at - 1, token]) for at, token in enumerate(choice))


def weighed(model: Any, **settings: Any) -> list[list[float]]:
    """The nats of all choices."""
    settings = {"batch": Packer(8), **settings}
    return [found.nats for lot in choice_nats(model, PROMPTS, CHOICES, **settings) for _, found in lot]


def flat(found: list[list[float]]) -> list[float]:
    return [nats for own in found for nats in own]


def expected(model: nn.Module) -> list[float]:
    return [alone(model, prompt, choice) for prompt, own in zip(PROMPTS, CHOICES, strict=True) for choice in own]


@pytest.mark.parametrize("attention", ["sdpa", "eager", PACKED_SDPA])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3_text", "mistral", "phi", "gpt2"])
def test_each_choice_is_what_it_is_alone(kind: str, attention: str) -> None:
    model = tiny(kind, "eager" if attention == "eager" else "sdpa")
    model.set_attn_implementation(attention)
    assert flat(weighed(model)) == pytest.approx(expected(model), abs=1e-4)
    windows = kind in ("gemma3_text", "mistral")
    assert (choices_module._window(model) == 4) == windows
    assert choices_module._branches(model) or windows


@pytest.mark.parametrize("config", APART)
def test_models_with_the_weights_they_begin_with(config: str) -> None:
    model = model_of(config, APART[config], torch.float32).eval()
    assert flat(weighed(model)) == pytest.approx(expected(model), abs=2e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager", PACKED_SDPA])
def test_models_in_half_precision(attention: str) -> None:
    model = tiny("llama", "eager" if attention == "eager" else "sdpa", torch.bfloat16)
    model.set_attn_implementation(attention)
    assert choices_module._branches(model)
    exact = tiny("llama", dtype=torch.bfloat16).float()
    assert flat(weighed(model)) == pytest.approx(expected(exact), rel=0.02)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("method", ["malora", "hydralora", "mola"])
def test_every_token_is_routed_as_it_is_alone(method: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = routed(method)
    monkeypatch.setattr(choices_module, "_branches", lambda _: shared)
    found = flat(weighed(model))
    assert model.training
    assert found == pytest.approx(expected(model.eval()), abs=1e-4)
    with model.disable_adapter():
        assert flat(weighed(model)) == pytest.approx(expected(model), abs=1e-4)
        assert flat(weighed(model)) != pytest.approx(found, abs=1e-2)


def test_a_prompt_goes_through_the_model_once_and_a_letter_takes_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[tuple[int, bool]] = []

    def spy(model: nn.Module, batch: Any) -> Any:
        rows.append((batch["input_ids"].numel(), "attention_mask" in batch))
        return token_nats(model, batch)

    model = tiny("llama")
    assert choices_module._branches(model)
    monkeypatch.setattr(choices_module, "token_nats", spy)
    weighed(model, batch=Packer(1))
    assert rows == [(9 + 2 + 0 + 1 + 4, True), (1, False), (3 + 1 + 1, True), (20 + 1 + 6, True)]


def test_lots_do_not_matter_and_what_is_done_is_left_out() -> None:
    model = tiny("llama")
    for packer in (Packer(1), Packer(2), Packer(8, 30), Packer(8, 1)):
        assert flat(weighed(model, batch=packer)) == pytest.approx(flat(weighed(model)), abs=1e-5)
    lots = choice_nats(model, PROMPTS, CHOICES, batch=Packer(2), done={0, 1, 3})
    assert [[number for number, _ in lot] for lot in lots] == [[2, 3]]


def test_lots_are_halved_where_memory_does_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    whole = flat(weighed(model))
    monkeypatch.setattr(choices_module, "token_nats", limited(token_nats, 27))
    assert flat(weighed(model)) == pytest.approx(whole, abs=1e-5)
    monkeypatch.setattr(choices_module, "token_nats", limited(token_nats, 20))
    with pytest.raises(RunError, match="one row does not fit"):
        weighed(model)


def test_choices_without_the_question() -> None:
    model = tiny("llama")
    lots = list(choice_nats(model, PROMPTS, CHOICES, batch=Packer(3), prior=PRIOR))
    found = [weight.prior_nats for lot in lots for _, weight in lot]
    assert flat(found) == pytest.approx([alone(model, PRIOR, choice) for own in CHOICES for choice in own], abs=1e-4)
    assert flat([weight.nats for lot in lots for _, weight in lot]) == pytest.approx(expected(model), abs=1e-4)


def test_a_model_has_positions_for_the_longest_choice() -> None:
    prompt = tokens(127).tolist()
    [[(_, found)]] = choice_nats(tiny("gpt2"), [prompt], [[[5], [6]]], batch=Packer(1))
    assert found.nats[0] == pytest.approx(alone(tiny("gpt2"), prompt, [5]), abs=1e-4)
    with pytest.raises(RunError, match="has 129 tokens, and this model has positions for 128"):
        list(choice_nats(tiny("gpt2"), [prompt], [[[5], [6, 7]]], batch=Packer(1)))


# ---------------------------------------------------------------- tokens


QUESTION = replace(Example.single("What melts ice?", "heat"), facts={"choices": ["cold", "heat", "a heat pump"]})


@pytest.mark.parametrize("name", NAMES)
def test_choices_have_the_tokens_that_training_would_have_behind_that_prompt(name: str) -> None:
    encoder = Encoder(tokenizer_of(source_of(name)))
    trained = encoder.encode(QUESTION)
    prompt = trained.input_ids[: trained.prompt_tokens]
    try:
        rows = encoder.tokenise(encoder.choices(QUESTION))
    except RowError:
        pytest.skip("the template refuses it")
    answer = encoder.template.traits.end if encoder.template else ""
    for text, row in zip(QUESTION.facts["choices"], rows, strict=True):
        assert row.input_ids[: row.prompt_tokens] == prompt
        assert encoder._text(row.input_ids[row.prompt_tokens :]).strip().endswith(text)
        with_end = encoder.encode(Example.single("What melts ice?", text))
        assert encoder._text(with_end.input_ids) == encoder._text(row.input_ids) + answer


def test_the_prompt_without_a_question(encoder: Encoder) -> None:
    text = encoder._text(unasked(encoder))
    assert text == "<|im_start|>user\nAnswer:<|im_end|>\n<|im_start|>assistant\n"
    assert encoder._text(unasked(encoder, "Be brief.")).startswith("<|im_start|>system\nBe brief.")
