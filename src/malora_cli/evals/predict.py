"""Greedy answers to many prompts at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from transformers import BatchEncoding, GenerationConfig, PreTrainedModel

from malora_cli.data.batch import Packer
from malora_cli.data.encoding import Encoder
from malora_cli.modeling.memory import Attempt, halved
from malora_cli.modeling.positions import most_positions

MORE_MEMORY = "Evaluate on a device with more memory."


@torch.no_grad()
def predict(
    model: PreTrainedModel | PeftModel,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    """What the model answers, in the order of the prompts.

    Args:
        model: In evaluation mode.
        encoder: The model's.
        prompts: Tokens of each prompt; similar lengths are put together, padded on the left.
        max_new_tokens: Longest answer; shorter where the model has no position for more.
        batch_size: Prompts at once; fewer where memory does not suffice.

    Returns:
        The answers, as `Encoder.answer` has them.

    Raises:
        RunError: Memory does not suffice for one prompt.
    """
    device = next(model.parameters()).device
    stops = {*encoder.stop_ids, *_own_stops(model)}
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stops) or None,
        stop_strings=encoder.stop_texts or None,
    )
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    start, size = 0, Packer(batch_size)
    # Padding is masked, and so of any token; some models have none for it, or one that they have no embedding of.
    greedy.pad_token_id = pad = min(stops, default=0)
    limit = most_positions(model)
    while start < len(order):
        lot = order[start : start + size.rows]
        if limit is not None and len(prompts[lot[-1]]) + max_new_tokens > limit + 1:
            lot = [index for index in lot if len(prompts[index]) == len(prompts[lot[0]])]  # each has all its room
            greedy.max_new_tokens = min(max_new_tokens, limit + 1 - len(prompts[lot[0]]))
        padded = _padded([prompts[index] for index in lot], pad).to(device)
        with Attempt() as attempt, _generating_by(model, greedy):
            output = model.generate(
                input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], tokenizer=encoder.tokenizer
            )
        if attempt.out_of_memory:
            size = halved(size, "generating answers", fix=MORE_MEMORY)
            continue
        for index, new_ids in zip(lot, output[:, padded["input_ids"].shape[1] :].tolist(), strict=True):
            end = next((at for at, token in enumerate(new_ids) if token in stops), len(new_ids))  # then padding
            answers[index] = encoder.answer(prompts[index], new_ids[:end])
        start += len(lot)
    return answers


def _padded(prompts: Sequence[Sequence[int]], pad: int) -> BatchEncoding:
    """Prompts as one batch, padded on the left."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return BatchEncoding({"input_ids": ids, "attention_mask": mask}, tensor_type="pt")


def _own_stops(model: PreTrainedModel | PeftModel) -> list[int]:
    """Tokens that end an answer by the model's own word; chat models have marks there that their tokenizer lacks."""
    decoder = _decoder(model)
    ends = decoder.generation_config.eos_token_id
    known = decoder.get_input_embeddings().weight.shape[0]  # a default may be of a larger model
    return [end for end in ([ends] if isinstance(ends, int) else ends or []) if end < known]


def _decoder(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def _generating_by(model: PreTrainedModel | PeftModel, config: GenerationConfig) -> Iterator[None]:
    """Put ``config`` in the place of the model's own.

    An argument to ``generate`` would only be laid over the model's own, and many models ship a repetition penalty
    there: what came out would not be greedy.
    """
    decoder = _decoder(model)
    own, decoder.generation_config = decoder.generation_config, config
    try:
        yield
    finally:
        decoder.generation_config = own
