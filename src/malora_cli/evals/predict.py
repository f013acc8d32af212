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
from malora_cli.evals.decoding import Row, can_decode, decode
from malora_cli.modeling.memory import Attempt, halved
from malora_cli.modeling.modes import as_trained
from malora_cli.modeling.positions import most_positions
from malora_cli.modeling.room import tokens_held

MORE_MEMORY = "Evaluate on a device with more memory."

#: Batches of a lot.
_BATCHES = 4
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

    A lot is of several batches, so that others can take the place of rows that are finished; a rest of less than one
    goes with the lot before it.

    Args:
        prompts: Tokens of each prompt.
        batch: Prompts at once at most, and their tokens, with padding and the longest answers.
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
        size = len(order) if len(order) < (_BATCHES + 1) * rows else _BATCHES * rows
        found.append(order[:size])
        order = order[size:]
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
        batch: What goes through the model at once at most, and without a limit of tokens, on a GPU, what its memory is
            found to hold; less where memory does not suffice.
        done: Prompts that are answered already. A lot is left out where all of its prompts are.

    Yields:
        Each prompt's index and answer, in the order of `lots`; equal prompts stand behind one another.

    Raises:
        RunError: Memory does not suffice for one prompt.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        alike.setdefault(tuple(prompt), []).append(index)
    if batch.tokens is None:
        batch = Packer(batch.rows, tokens_held(model))
    generator = _Generator(model, encoder, max_new_tokens, batch)
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

    def __init__(
        self, model: PreTrainedModel | PeftModel, encoder: Encoder, max_new_tokens: int, batch: Packer
    ) -> None:
        self.model, self.encoder, self.max_new_tokens, self.batch = model, encoder, max_new_tokens, batch
        self.decoder = model.get_base_model() if isinstance(model, PeftModel) else model
        self.stops = stops_of(encoder, self.decoder)
        self.positions = most_positions(model)
        self.made = self._decoded if can_decode(self.decoder) else self._generated

    def __call__(self, prompts: Sequence[Sequence[int]]) -> list[Generated]:
        """Answers to one lot, longest prompt first."""
        width = len(prompts[0]) + self.max_new_tokens
        while True:
            rows = min(len(prompts), _rows(self.batch, width))
            with Attempt(), as_trained(self.decoder):
                made = self.made(prompts, rows)
                return [self._answer(prompt, ids) for prompt, ids in zip(prompts, made, strict=True)]
            tokens = halved(Packer(rows, rows * width), "generating answers", fix=MORE_MEMORY).tokens
            self.batch = Packer(self.batch.rows, tokens)  # shorter prompts may still be as many

    def _answer(self, prompt: Sequence[int], ids: Sequence[int]) -> Generated:
        cut: Stop = "length" if self._room(prompt) == self.max_new_tokens else "room"
        return as_answer(self.encoder, prompt, ids, self.stops, cut)

    def _room(self, prompt: Sequence[int]) -> int:
        """Tokens that an answer may have."""
        limit = self.positions
        return self.max_new_tokens if limit is None else min(self.max_new_tokens, limit + 1 - len(prompt))

    def _ends(self, made: Sequence[int]) -> bool:
        if made[-1] in self.stops:
            return True
        texts = self.encoder.stop_texts
        if not texts:
            return False
        longest = max(len(text.encode()) for text in texts)  # a token is a byte or more
        end = self.encoder.tokenizer.decode(made[-longest - 1 :])
        return any(text in end for text in texts)

    @torch.no_grad()
    def _decoded(self, prompts: Sequence[Sequence[int]], at_once: int) -> list[list[int]]:
        rows = [Row(prompt, self._room(prompt), self._ends) for prompt in prompts]
        decode(self.decoder, rows, at_once)
        return [row.made for row in rows]

    @torch.no_grad()
    def _generated(self, prompts: Sequence[Sequence[int]], at_once: int) -> list[list[int]]:
        """By transformers, for models whose keys and values are not ours to keep; padded behind what ends an answer."""
        found: list[list[int]] = []
        while part := prompts[len(found) :][:at_once]:
            room = self._room(part[0])
            if room < self.max_new_tokens:
                part = [prompt for prompt in part if len(prompt) == len(part[0])]  # each has all its room
            found += self._continued(part, room)
        return found

    def _continued(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        greedy = generation(self.encoder, self.stops, max_new_tokens)
        padded = _padded(prompts, greedy.pad_token_id).to(self.decoder.device)
        ids = padded["input_ids"]
        with generating_by(self.decoder, greedy):
            output = self.decoder.generate(
                input_ids=ids, attention_mask=padded["attention_mask"], tokenizer=self.encoder.tokenizer
            )
        return output[:, ids.shape[1] :].tolist()


def _padded(prompts: Sequence[Sequence[int]], pad: int) -> BatchEncoding:
    """Prompts as one batch, padded on the left."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return BatchEncoding({"input_ids": ids, "attention_mask": mask}, tensor_type="pt")


def stops_of(encoder: Encoder, decoder: PreTrainedModel) -> set[int]:
    """Tokens that end an answer, also by the model's own word: chat models have marks that their tokenizer lacks."""
    ends = decoder.generation_config.eos_token_id
    known = decoder.get_input_embeddings().weight.shape[0]  # a default may be of a larger model
    own = [ends] if isinstance(ends, int) else ends or []
    return {*encoder.stop_ids, *(end for end in own if end < known)}


def as_answer(
    encoder: Encoder, prompt: Sequence[int], ids: Sequence[int], stops: Collection[int], cut: Stop
) -> Generated:
    """Generated tokens as an answer.

    Args:
        encoder: The model's.
        prompt: Tokens that were continued.
        ids: Tokens that continue them; padding may stand behind the end.
        stops: Tokens that end an answer.
        cut: What has ended it where no token or text has.
    """
    end = next((at for at, token in enumerate(ids) if token in stops), len(ids))
    text = encoder.tokenizer.decode(ids[:end])
    marked = any(mark in text for mark in encoder.stop_texts)
    stop: Stop = "stop string" if marked else "end" if end < len(ids) else cut
    return Generated(encoder.answer(prompt, ids[:end]), end, stop)


def generation(encoder: Encoder, stops: Collection[int], max_new_tokens: int, **sampling: float) -> GenerationConfig:
    """What transformers generates by: greedily, unless it is told how to sample."""
    return GenerationConfig(
        do_sample=bool(sampling),
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stops) or None,
        stop_strings=encoder.stop_texts or None,
        # Padding is masked, and so of any token; some models have none for it, or one that they cannot embed.
        pad_token_id=min(stops, default=0),
        **sampling,
    )


@contextmanager
def generating_by(decoder: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Put ``config`` in the place of the model's own.

    An argument to ``generate`` would only be laid over the model's own, and many models ship a repetition penalty
    there: what came out would not be greedy.
    """
    own, decoder.generation_config = decoder.generation_config, config
    try:
        yield
    finally:
        decoder.generation_config = own
