"""What is said of a chat template before anything is trained with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from chat_families import source_of, tokenizer_of
from malora_cli.data.chat.notes import notes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3", []),
        ("gemma3", []),
        ("qwen3_instruct_2507", []),
        ("qwen3", ["answers are asked as with enable_thinking: false. Serve a model so that"]),
        ("glm4moe", ["answers are asked as with enable_thinking: false. Serve a model so that"]),
        (
            "deepseek_r1_distill",
            [r"asks for an answer with '<｜Assistant｜><think>\\n'. Where"],
        ),
        ("gptoss", [r"asked behind '<|end|><|start|>assistant<|channel|>final<|message|>', as it writes them."]),
    ],
)
def test_who_serves_a_model_is_told_how_it_was_asked(name: str, expected: list[str]) -> None:
    found = notes(tokenizer_of(source_of(name)))
    assert len(found) == len(expected)
    assert all(part.replace("\\\\", "\\") in note for part, note in zip(expected, found, strict=True))


def test_the_template_of_another_model_is_told(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert notes(tokenizer) == []
    tokenizer.chat_template = source_of("phi3")
    [note] = notes(tokenizer)
    assert note.startswith(
        "The chat template writes <|user|>, <|end|>, <|assistant|>, and the tokenizer has no such token"
    )


def test_a_template_that_does_not_ask_and_one_without_a_beginning_are_told(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    bos = "<|endoftext|>"
    tokenizer.bos_token = bos
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    assert notes(tokenizer) == [
        f"The tokenizer begins a text with {bos}, and the chat template does not. Rows are trained without it, as the "
        "chat template serves them."
    ]
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    assert notes(tokenizer) == [
        "The chat template does not ask for answers (add_generation_prompt). They stand behind '\\n[assistant]' and "
        "end with '<|im_end|>'."
    ]
    tokenizer.chat_template = None
    assert notes(tokenizer) == []
