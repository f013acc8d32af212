"""From text to tokens: where the prompt ends, what is supervised, and how an answer ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from conftest import CHATML
from malora_cli.data.batch import TrainExample, collate
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats._base import Example

EXAMPLE = Example.single("What is 2 + 3?", "5")
END = "<|im_end|>"
BOS = "<|endoftext|>"
# Llama's way: a beginning of text, the answer trimmed, an end of turn that is not the end of text.
TRIMMING = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TEXT_END = NO_END.replace("+ '\n'", "+ ' STOP\n'")
# The last turn changes what is said about earlier ones, so that the whole does not begin with the prompt.
REWRITING = "{{ messages | length }} turns " + CHATML
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role\nnot supported') }}{% endif %}" + CHATML
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML
)


@pytest.fixture
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


def _with(tokenizer: PreTrainedTokenizerBase, template: str | None, **special: Any) -> Encoder:
    tokenizer.chat_template = template
    for name, value in special.items():
        setattr(tokenizer, name, value)
    return Encoder(tokenizer)


def _split(encoder: Encoder, example: Example = EXAMPLE, system: str | None = None) -> tuple[str, str]:
    """Prompt and supervised part, as text decoded from the tokens."""
    encoded = encoder.encode(example, system)
    prompt, answer = encoded.input_ids[: encoded.prompt_tokens], encoded.input_ids[encoded.prompt_tokens :]
    return encoder.tokenizer.decode(prompt), encoder.tokenizer.decode(answer)


def test_the_answer_begins_where_generation_does(tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = _with(tokenizer, CHATML)
    messages = [{"role": "user", "content": EXAMPLE.prompt}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    encoded = encoder.encode(EXAMPLE, None)
    assert encoded.input_ids[: encoded.prompt_tokens] == asked
    assert _split(encoder)[1] == f"5{END}"
    assert encoded.input_ids[-1] == tokenizer.convert_tokens_to_ids(END)


@pytest.mark.parametrize(
    ("system", "expected"), [(None, ""), ("", f"<|im_start|>system\n{END}\n"), ("Hi", f"<|im_start|>system\nHi{END}\n")]
)
def test_the_system_prompt_is_context(tokenizer: PreTrainedTokenizerBase, system: str | None, expected: str) -> None:
    user = f"<|im_start|>user\n{EXAMPLE.prompt}{END}\n<|im_start|>assistant\n"
    assert _split(_with(tokenizer, CHATML), system=system) == (expected + user, f"5{END}")


@pytest.mark.parametrize(("system", "kind"), [(None, True), ("", False), ("Be rude.", False)])
def test_no_system_prompt_is_the_templates_own(
    tokenizer: PreTrainedTokenizerBase, system: str | None, kind: bool
) -> None:
    assert ("Be kind." in _split(_with(tokenizer, DEFAULT_SYSTEM), system=system)[0]) == kind


@pytest.mark.parametrize(("system", "context"), [(None, ""), ("", ""), ("Be brief.", "Be brief.\n\n")])
def test_without_a_template_the_text_is_plain(
    tokenizer: PreTrainedTokenizerBase, system: str | None, context: str
) -> None:
    assert _split(_with(tokenizer, None), system=system) == (f"{context}{EXAMPLE.prompt}\n", f"5{END}")


@pytest.mark.parametrize(
    ("template", "expected"),
    [(CHATML, f"5{END}"), (NO_END, f"5{END}"), (TEXT_END, "5 STOP"), (REWRITING, f"5{END}"), (None, f"5{END}")],
)
def test_an_answer_ends_once(tokenizer: PreTrainedTokenizerBase, template: str | None, expected: str) -> None:
    assert _split(_with(tokenizer, template))[1] == expected


@pytest.mark.parametrize("completion", ["5", " 5", "5 \n", " 5 "])
def test_a_template_may_trim_the_answer(tokenizer: PreTrainedTokenizerBase, completion: str) -> None:
    encoder = _with(tokenizer, TRIMMING, bos_token=BOS)
    assert _split(encoder, Example.single("?", completion))[1] == f"5{END}"


@pytest.mark.parametrize("completion", ["5", " 5", "5 "])
def test_a_trimmed_answer_without_an_end_gets_one(tokenizer: PreTrainedTokenizerBase, completion: str) -> None:
    trimming = NO_END.replace("m['content']", "(m['content'] | trim)")
    assert _split(_with(tokenizer, trimming), Example.single("?", completion))[1] == f"5{END}"


def test_white_space_of_an_answer_is_kept_where_the_template_keeps_it(tokenizer: PreTrainedTokenizerBase) -> None:
    assert _split(_with(tokenizer, CHATML), Example.single("?", " a\n b "))[1] == f" a\n b {END}"


def test_the_beginning_of_text_stands_once(tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokenizer that puts BOS before every text, as Llama's does."""
    tokenizer.bos_token = BOS
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos)])
    assert tokenizer("x")["input_ids"][0] == bos
    for template in (TRIMMING, None):  # the template writes it, or the tokenizer does
        ids = _with(tokenizer, template).encode(EXAMPLE, None).input_ids
        assert ids[0] == bos
        assert ids.count(bos) == 1


def test_plain_text_does_not_end_before_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokenizer that puts EOS behind every text."""
    eos = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, eos)])
    assert _split(_with(tokenizer, None)) == (f"{EXAMPLE.prompt}\n", f"5{END}")


@pytest.mark.parametrize(
    ("template", "eos", "expected"),
    [
        (CHATML, END, {END}),
        (CHATML, BOS, {END, BOS}),  # the end of a turn is not the end of text
        (NO_END, BOS, {BOS}),
        (TEXT_END, BOS, {BOS}),  # "P" does not end an answer
        (None, END, {END}),
        (CHATML, None, {END}),
        (None, None, set()),
    ],
)
def test_what_ends_an_answer(
    tokenizer: PreTrainedTokenizerBase, template: str | None, eos: str | None, expected: set[str]
) -> None:
    encoder = _with(tokenizer, template, eos_token=eos)
    assert {tokenizer.decode([number]) for number in encoder.stop_ids} == expected


def test_a_tokenizer_without_an_end_adds_no_word_for_it(tokenizer: PreTrainedTokenizerBase) -> None:
    for template in (NO_END, None):
        assert _split(_with(tokenizer, template, eos_token=None))[1] == "5"


@pytest.mark.parametrize(("system", "begin"), [(None, ""), ("", ""), (" ", ""), ("Be brief.", "Be brief.\n\n")])
def test_where_there_is_no_system_role_the_user_says_it(
    tokenizer: PreTrainedTokenizerBase, system: str | None, begin: str
) -> None:
    encoder = _with(tokenizer, NO_SYSTEM)
    user = f"<|im_start|>user\n{begin}{EXAMPLE.prompt}{END}\n<|im_start|>assistant\n"
    assert _split(encoder, system=system) == (user, f"5{END}")
    assert bool(encoder.rendered(EXAMPLE, system).remarks) == bool(begin)


def test_what_decides_the_tokens_is_in_the_fingerprint(tiny_model: Path) -> None:
    def fingerprint(template: str | None = CHATML, **special: Any) -> str:
        return _with(AutoTokenizer.from_pretrained(tiny_model), template, **special).fingerprint

    different = [
        fingerprint(),
        fingerprint(None),
        fingerprint(NO_END),
        fingerprint(eos_token=BOS),
        fingerprint(bos_token=BOS),
    ]
    assert len(set(different)) == len(different)
    assert fingerprint() == fingerprint()
    other = AutoTokenizer.from_pretrained(tiny_model)
    other.add_tokens(["What"])
    assert Encoder(other).fingerprint not in different


@st.composite
def examples(draw: st.DrawFn) -> TrainExample:
    ids = draw(st.lists(st.integers(0, 99), min_size=2, max_size=9))
    ends = draw(st.lists(st.integers(0, len(ids)), unique=True, max_size=6).map(sorted))
    return TrainExample(ids, list(zip(ends[::2], ends[1::2], strict=False)), draw(st.integers(0, 3)))


@given(st.lists(examples(), min_size=1, max_size=6))
def test_examples_stand_behind_one_another(batch: list[TrainExample]) -> None:
    expected: list[tuple[int, int, int, int]] = []  # position, target, task, example
    start = 0
    for number, example in enumerate(batch):
        for first, last in example.spans:
            for at in range(max(1, first), last):
                expected.append((start + at - 1, example.input_ids[at], example.task, number))
        start += len(example.input_ids)
    found = collate(batch)
    columns = [found[name].tolist() for name in ("positions", "targets", "tasks", "examples")]  # type: ignore[literal-required]
    assert list(zip(*columns, strict=True)) == expected
    assert found["input_ids"].tolist() == [[token for example in batch for token in example.input_ids]]
    assert found["position_ids"].tolist() == [[at for example in batch for at in range(len(example.input_ids))]]
    assert found["lengths"] == tuple(len(example.input_ids) for example in batch)
    tensors = [value for value in found.values() if isinstance(value, torch.Tensor)]
    assert {tensor.dtype for tensor in tensors} == {torch.int64}
    assert len(tensors) == len(found) - 1
