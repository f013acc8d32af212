"""Greedy answers to many prompts, lot by lot.

The lots follow from the prompts and the settings alone, so that work that was broken off goes on to the same answers:
a lot that was not kept whole is made again whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from peft import PeftModel
from transformers import BatchEncoding, GenerationConfig, PreTrainedModel

from malora_cli.data.batch import Packer
from malora_cli.data.encoding import Encoder
from malora_cli.modeling.memory import Attempt, halved
from malora_cli.modeling.positions import most_positions

MORE_MEMORY = "Evaluate on a device with more memory."

#: What ended an answer: a token, a text, its longest length, or the last position that the model has.
Stop = Literal["end", "stop string", "length", "room"]


@dataclass(frozen=True)
class Generated:
    """What a model answers to one prompt.

    Args:
        text: As `Encoder.answer` has it.
        tokens: Tokens that were generated, without the one that ended the answer.
        stop: What ended it.
    """

    text: str
    tokens: int
    stop: Stop


def lots(prompts: Sequence[Sequence[int]], batch: Packer, max_new_tokens: int) -> list[list[int]]:
    """Which prompts are answered together: the longest first, and equal ones once.

    Args:
        prompts: Tokens of each prompt.
        batch: Prompts of a lot at most, and its tokens, with padding and the longest answers.
        max_new_tokens: Longest answer.

    Returns:
        Of each lot, the first of each group of equal prompts.
    """
    first: dict[tuple[int, ...], int] = {}
    for index, prompt in enumerate(prompts):
        first.setdefault(tuple(prompt), index)
    order = sorted(first.values(), key=lambda index: -len(prompts[index]))
    found = []
    while order:
        rows = _rows(batch, len(prompts[order[0]]) + max_new_tokens)
        found.append(order[:rows])
        order = order[rows:]
    return found


def generate_lots(
    model: PreTrainedModel | PeftModel,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch: Packer,
    done: Collection[int] = (),
) -> Iterator[list[tuple[int, Generated]]]:
    """Answer prompts greedily, and hand on each lot as soon as it is made.

    Args:
        model: In evaluation mode.
        encoder: The model's.
        prompts: Tokens of each prompt.
        max_new_tokens: Longest answer; shorter where the model has no position for more.
        batch: What goes through the model at once at most; less where memory does not suffice.
        done: Prompts that are answered already. A lot is left out where all of its prompts are.

    Yields:
        Each prompt's index and answer, in the order of `lots`; equal prompts stand behind one another.

    Raises:
        RunError: Memory does not suffice for one prompt.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        alike.setdefault(tuple(prompt), []).append(index)
    generator = _Generator(model, encoder, max_new_tokens)
    for lot in lots(prompts, batch, max_new_tokens):
        groups = [alike[tuple(prompts[index])] for index in lot]
        if not all(index in done for group in groups for index in group):
            answers = generator([prompts[index] for index in lot])
            yield [(index, answer) for group, answer in zip(groups, answers, strict=True) for index in group]


def predict(
    model: PreTrainedModel | PeftModel,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch: Packer,
) -> list[str]:
    """The texts of all answers, in the order of the prompts; arguments as of `generate_lots`."""
    made = generate_lots(model, encoder, prompts, max_new_tokens=max_new_tokens, batch=batch)
    texts = {index: answer.text for lot in made for index, answer in lot}
    return [texts[index] for index in range(len(prompts))]


def _rows(batch: Packer, width: int) -> int:
    """Rows of such a width that go together."""
    return batch.rows if batch.tokens is None else max(1, min(batch.rows, batch.tokens // width))


class _Generator:
    """Answers one lot after another, and remembers how many tokens at once memory did not suffice for."""

    def __init__(self, model: PreTrainedModel | PeftModel, encoder: Encoder, max_new_tokens: int) -> None:
        self.model, self.encoder, self.max_new_tokens = model, encoder, max_new_tokens
        self.stops = {*encoder.stop_ids, *_own_stops(model)}
        self.positions = most_positions(model)
        self.tokens: int | None = None

    def __call__(self, prompts: Sequence[Sequence[int]]) -> list[Generated]:
        """Answers to one lot, longest prompt first."""
        found: list[Generated] = []
        while len(found) < len(prompts):
            width = len(prompts[len(found)]) + self.max_new_tokens
            rows = _rows(Packer(len(prompts) - len(found), self.tokens), width)
            part = prompts[len(found) : len(found) + rows]
            with Attempt() as attempt:
                made = self._made(part)
            if attempt.out_of_memory:
                self.tokens = halved(Packer(rows, rows * width), "generating answers", fix=MORE_MEMORY).tokens
            else:
                found += [self._answer(prompt, ids) for prompt, ids in zip(part, made, strict=True)]
        return found

    def _answer(self, prompt: Sequence[int], ids: Sequence[int]) -> Generated:
        end = next((at for at, token in enumerate(ids) if token in self.stops), len(ids))  # then padding
        text = self.encoder.tokenizer.decode(ids[:end])
        stop: Stop = "length" if self._room(prompt) == self.max_new_tokens else "room"
        if any(mark in text for mark in self.encoder.stop_texts):
            stop = "stop string"
        elif end < len(ids):
            stop = "end"
        return Generated(self.encoder.answer(prompt, ids[:end]), end, stop)

    def _room(self, prompt: Sequence[int]) -> int:
        """Tokens that an answer may have."""
        limit = self.positions
        return self.max_new_tokens if limit is None else min(self.max_new_tokens, limit + 1 - len(prompt))

    @torch.no_grad()
    def _made(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Tokens that continue the prompts, each up to what ends it."""
        greedy = self._greedy()
        alike, others = prompts, prompts[:0]
        if self._room(prompts[0]) < self.max_new_tokens:
            alike = [prompt for prompt in prompts if len(prompt) == len(prompts[0])]  # each has all its room
            others = prompts[len(alike) :]
            greedy.max_new_tokens = self._room(prompts[0])
        return self._continued(alike, greedy) + (self._made(others) if others else [])

    def _greedy(self) -> GenerationConfig:
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=sorted(self.stops) or None,
            stop_strings=self.encoder.stop_texts or None,
            # Padding is masked, and so of any token; some models have none for it, or one that they cannot embed.
            pad_token_id=min(self.stops, default=0),
        )

    def _continued(self, prompts: Sequence[Sequence[int]], greedy: GenerationConfig) -> list[list[int]]:
        padded = _padded(prompts, greedy.pad_token_id).to(next(self.model.parameters()).device)
        ids = padded["input_ids"]
        with _generating_by(self.model, greedy):
            output = self.model.generate(
                input_ids=ids, attention_mask=padded["attention_mask"], tokenizer=self.encoder.tokenizer
            )
        return output[:, ids.shape[1] :].tolist()


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
