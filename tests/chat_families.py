"""Chat templates that TRL ships, each with a tokenizer that knows its marks, and what its twin marks for training."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

_FOLDER = Path(trl.__file__).parent / "chat_templates"
_TRAINING = "_training"
NAMES = sorted(path.stem for path in _FOLDER.glob("*.jinja") if not path.stem.endswith(_TRAINING))
_SPECIAL = ["<bos>", "<eos>", "<pad>"]
#: Marks of turns as models' tokenizers have them for special tokens.
_MARK = re.compile(r"<\|\w+\|>|<｜[\w▁]+｜>|<\w+_of_\w+>|<\|turn>|<turn\|>|\[gMASK\]|<sop>|</s>|<\|tool_response>")


def source_of(name: str) -> str:
    """A chat template."""
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def tokenizer_of(template: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a template, whose marks are tokens of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*_SPECIAL, *sorted(set(_MARK.findall(template)))])
    names = dict(zip(("bos_token", "eos_token", "pad_token"), _SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **names)


def marked(name: str, messages: list[dict[str, Any]]) -> list[str] | None:
    """The stretches that the template's marks give to the assistant; None where nothing marks them."""
    twin = _FOLDER / f"{name}{_TRAINING}.jinja"
    template = source_of(name if not twin.is_file() else twin.stem)
    if "endgeneration" not in template:
        return None
    [text], [spans] = render_jinja_template(
        [messages], chat_template=template, return_assistant_tokens_mask=True, bos_token="<bos>", eos_token="<eos>"
    )
    joined = [spans[0]]
    for (_, end), (start, last) in pairwise(spans):
        if start == end:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((start, last))
    return [text[start:end] for start, end in joined]
