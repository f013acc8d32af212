"""Greedy answers to many prompts at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def predict(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    """What the model answers, in the order of the prompts.

    Args:
        model: In evaluation mode.
        tokenizer: The model's, with a padding token.
        prompts: Tokens of each prompt; similar lengths are put together, padded on the left.
        stop_ids: Tokens that end an answer.
        max_new_tokens: Longest answer.
        batch_size: Prompts at once.

    Returns:
        The answers without special tokens.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        lot = order[start : start + batch_size]
        padded = tokenizer.pad(
            {"input_ids": [list(prompts[index]) for index in lot]}, padding_side="left", return_tensors="pt"
        ).to(device)
        output = model.generate(
            input_ids=padded["input_ids"],
            attention_mask=padded["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(stop_ids),
            pad_token_id=tokenizer.pad_token_id,
        )
        new_tokens = output[:, padded["input_ids"].shape[1] :]
        for index, text in zip(lot, tokenizer.batch_decode(new_tokens, skip_special_tokens=True), strict=True):
            answers[index] = text
    return answers
