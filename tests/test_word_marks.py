"""Tokenizers that begin every text with a word mark: a text in parts becomes the tokens of the whole."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from malora_cli.data.chat.template import Segment
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats._base import Example, Turn
from malora_cli.data.word_marks import marks_of

MARK = "▁"
SPECIAL = ["<s>", "</s>", "<user>", "<model>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<user>' if m.role == 'user' else '<model>' }}{{ m.content }}"
    "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)
#: Without special tokens between what is asked and what is said.
PLAIN = (
    "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + '</s>' }}"
    "{% endfor %}"
)


def _tokenizer(template: str, steps: dict[str, Any]) -> PreTrainedTokenizerFast:
    letters = [MARK, " ", *"abcdefghijklmnopqrstuvwxyzINST[]/0123456789.?+=", chr(0x120)]
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, "<unk>", *letters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    for name, step in steps.items():
        setattr(backend, name, step)
    backend.decoder = decoders.Replace(MARK, " ")
    backend.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=template)


STEPS: dict[str, dict[str, Any]] = {
    "first": {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="first", split=False)},
    "always": {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="always", split=False)},
    "never": {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="never", split=False)},
    "legacy": {
        "normalizer": normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)]),
    },
    "bytes": {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)},
}


@pytest.mark.parametrize("template", [TEMPLATE, PLAIN])
@pytest.mark.parametrize("name", STEPS)
def test_parts_become_the_tokens_of_the_whole(name: str, template: str) -> None:
    encoder = Encoder(_tokenizer(template, STEPS[name]))
    assert marks_of(encoder.tokenizer.backend_tokenizer) == {"legacy": "always", "bytes": "always"}.get(name, name)
    turns = (
        Turn("user", "what is 2 + 3?"),
        Turn("assistant", "it is 5"),
        Turn("user", "and 4"),
        Turn("assistant", "4"),
    )
    [row] = encoder.rendered(Example(turns)).rows
    [encoded] = encoder.tokenise([row])
    whole = encoder.tokenizer.backend_tokenizer.encode("".join(part.text for part in row), add_special_tokens=False)
    assert encoded.input_ids == whole.ids
    assert len(encoded.spans) == 2


@pytest.mark.parametrize("name", STEPS)
def test_empty_parts_are_nothing(name: str) -> None:
    """As before an answer that begins a conversation, and between two of them."""
    encoder = Encoder(_tokenizer(PLAIN, STEPS[name]))
    for texts in (["", "it is 5</s>"], ["what", "is</s>", "", "it</s>"], ["", "", "it"], ["what", "", " is it"]):
        [encoded] = encoder.tokenise([[Segment(text, supervised=bool(at % 2)) for at, text in enumerate(texts)]])
        whole = encoder.tokenizer.backend_tokenizer.encode("".join(texts), add_special_tokens=False)
        assert (texts, encoded.input_ids) == (texts, whole.ids)


def test_what_is_generated_reads_as_the_answer() -> None:
    for name in STEPS:
        encoder = Encoder(_tokenizer(TEMPLATE, STEPS[name]))
        encoded = encoder.encode(Example.single("what is it?", "it is 5"))
        prompt, answer = encoded.input_ids[: encoded.prompt_tokens], encoded.input_ids[encoded.prompt_tokens : -1]
        assert encoder.answer(prompt, answer).replace(chr(0x120), " ").strip() == "it is 5"
