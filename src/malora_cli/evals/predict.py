"""Greedy answers to many prompts at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from malora_cli.data.batch import Packer
from malora_cli.modeling.memory import Attempt, halved

MORE_MEMORY = "Evaluate on a device with more memory."


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
        batch_size: Prompts at once; fewer where memory does not suffice.

    Returns:
        The answers without special tokens.

    Raises:
        RunError: Memory does not suffice for one prompt.
    """
    device = next(model.parameters()).device
    stops = set(stop_ids)
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=tokenizer.pad_token_id,
    )
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    start, size = 0, Packer(batch_size)
    while start < len(order):
        lot = order[start : start + size.rows]
        padded = tokenizer.pad(
            {"input_ids": [list(prompts[index]) for index in lot]}, padding_side="left", return_tensors="pt"
        ).to(device)
        with Attempt() as attempt, _generating_by(model, greedy):
            output = model.generate(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"])
        if attempt.out_of_memory:
            size = halved(size, "generating answers", fix=MORE_MEMORY)
            continue
        for index, new_ids in zip(lot, output[:, padded["input_ids"].shape[1] :].tolist(), strict=True):
            # What follows the end is padding; the end itself need not be a special token.
            end = next((at for at, token in enumerate(new_ids) if token in stops), len(new_ids))
            answers[index] = tokenizer.decode(new_ids[:end], skip_special_tokens=True)
        start += len(lot)
    return answers


@contextmanager
def _generating_by(model: PreTrainedModel | PeftModel, config: GenerationConfig) -> Iterator[None]:
    """Put ``config`` in the place of the model's own.

    An argument to ``generate`` would only be laid over the model's own, and many models ship a repetition penalty
    there: what came out would not be greedy.
    """
    decoder = model.get_base_model() if isinstance(model, PeftModel) else model
    own, decoder.generation_config = decoder.generation_config, config
    try:
        yield
    finally:
        decoder.generation_config = own
