"""From segments of text to tokens, and from generated tokens back to an answer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from malora_cli.data.chat.answers import THINK, parted, spoken
from malora_cli.data.chat.plain import plain
from malora_cli.data.chat.rendering import shared
from malora_cli.data.chat.template import ChatTemplate, Rendered, Segment
from malora_cli.data.chat.traits import added_tokens, any_of, at_the_end
from malora_cli.data.formats._base import Example, RowError, Turn
from malora_cli.data.word_marks import Marks, marks_of, without_marks


@dataclass(frozen=True)
class Encoded:
    """One example as tokens.

    Args:
        input_ids: All of it.
        spans: First and last (excluded) position of each supervised answer, end-of-turn token included.
    """

    input_ids: Sequence[int]
    spans: Sequence[tuple[int, int]]

    @property
    def prompt_tokens(self) -> int:
        """Tokens before the last answer."""
        return self.spans[-1][0]

    @property
    def label_tokens(self) -> int:
        """Supervised tokens; the first token of a row has nothing before it to be predicted from."""
        return sum(last - max(first, 1) for first, last in self.spans if last > max(first, 1))


class Encoder:
    """Renders and tokenises examples for one model.

    Prompts and answers are tokenised apart, so that the model is trained from the very tokens it will be asked to
    continue; rendered together, a tokenizer may merge across the seam.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The tokenizer's chat template."""
        return ChatTemplate(self.tokenizer) if self.tokenizer.chat_template else None

    def rendered(self, example: Example, system: str | None = None, *, last: bool = False) -> Rendered:
        """The text of an example, as `ChatTemplate.rendered` and `plain` have it."""
        if self.template is None:
            return plain(example, system, self._eos, last=last)
        return self.template.rendered(example, system, last=last)

    def asked(self, turns: Sequence[Turn], system: str | None = None) -> list[Segment]:
        """The text that asks for the next answer of a conversation, which is a model's prompt.

        Args:
            turns: What was said until now.
            system: System prompt, where the conversation does not begin with one.

        Raises:
            RowError: The chat template refuses the conversation, or leaves out something of it.
        """
        *prompt, _ = self.rendered(Example((*turns, Turn("assistant", "A"))), system, last=True).rows[-1]
        return prompt

    def prompt(self, turns: Sequence[Turn], system: str | None = None) -> list[int]:
        """Tokens of `asked`."""
        return list(self.tokenise([self.asked(turns, system)])[0].input_ids)

    def choices(self, example: Example, system: str | None = None, *, last: bool = False) -> list[list[Segment]]:
        """The text of an example with each of its choices in the place of its answer, without the end of the turn.

        Raises:
            RowError: The chat template writes a choice behind another prompt than the answer.
        """
        *asked, answer = example.turns
        *prompt, _ = self.rendered(example, system, last=last).rows[-1]
        end = self._eos if self.template is None else self.template.traits.end
        found = []
        for text in example.facts["choices"]:
            turns = (*asked, replace(answer, text=text))
            *before, choice = self.rendered(replace(example, turns=turns), system, last=last).rows[-1]
            if before != prompt:
                raise RowError("a choice that the model's chat template writes behind another prompt than the answer")
            found.append([*prompt, replace(choice, text=choice.text.removesuffix(end))])
        return found

    def references(self, example: Example, rendered: Rendered) -> list[str]:
        """What may be answered at the end of an example: texts without reasoning, or a tool call as it is written."""
        if not example.completion or example.turns[-1].extra.get("tool_calls"):
            return [self._said(rendered.reference).strip()]
        return [self._said(parted(text)[1]) for text in example.references]

    def remarks(self, example: Example) -> list[str]:
        """What is to be known of the texts of an example: special tokens in them are tokens to the model, not text."""
        found = (self._not_text.search(turn.text) for turn in example.turns)
        first = next((match for match in found if match is not None), None)
        return [] if first is None else [f"special tokens of the model in a text, such as {first.group()}"]

    @cached_property
    def _thinks(self) -> tuple[str, str]:
        return THINK if self.template is None else self.template.traits.thinks

    @property
    def _eos(self) -> str:
        return str(self.tokenizer.eos_token or "")

    def encode(self, example: Example, system: str | None = None) -> Encoded:
        """Tokens of one example; of the last answer where each is a row of its own."""
        return self.tokenise([self.rendered(example, system).rows[-1]])[0]

    def tokenise(self, rows: Sequence[Sequence[Segment]]) -> list[Encoded]:
        """Tokens of many examples, in one call of the tokenizer: an order of magnitude faster than one by one."""
        plain = self.template is None
        tokens = iter(self._continued(rows))
        # A chat template writes its own special tokens; the beginning of a plain text wants the tokenizer's.
        first = iter(self._ids([row[0].text for row in rows], special=True) if plain else ())
        found = []
        for row in rows:
            ids: list[int] = []
            spans = []
            for number, segment in enumerate(row):
                part = next(tokens)
                if plain and number == 0:
                    part = next(first)
                    if part[-1:] == [self.tokenizer.eos_token_id]:  # the end of a text, and this is its middle
                        part = part[:-1]
                if segment.supervised and part:
                    spans.append((len(ids), len(ids) + len(part)))
                ids += part
            found.append(Encoded(ids, spans))
        return found

    def _continued(self, rows: Sequence[Sequence[Segment]]) -> list[list[int]]:
        """Tokens of every segment as it stands behind those before it."""
        texts = [segment.text for row in rows for segment in row]
        if self._marks == "never":
            return self._ids(texts, special=False)
        heads = [self._head(row, number) for row in rows for number in range(len(row))]
        begun = self._ids([text[head:] for text, head in zip(texts, heads, strict=True)], special=False)
        unmarked = self._unmarked.encode_batch_fast(
            [text[:head] for text, head in zip(texts, heads, strict=True)], add_special_tokens=False
        )
        return [head.ids + rest for head, rest in zip(unmarked, begun, strict=True)]

    def _head(self, row: Sequence[Segment], number: int) -> int:
        """Characters of a segment that go on from the text before it, and so get no word mark."""
        text = row[number].text
        before = next((segment.text for segment in reversed(row[:number]) if segment.text), "")
        if not before:
            return 0
        if self._marks == "first":
            return len(text)
        if self._special_end.search(before):
            return 0
        found = self._special.search(text)
        return len(text) if found is None else found.start()

    @cached_property
    def _marks(self) -> Marks:
        return marks_of(self.tokenizer.backend_tokenizer) if self.tokenizer.is_fast else "never"

    @cached_property
    def _unmarked(self) -> Tokenizer:
        return without_marks(self.tokenizer.backend_tokenizer)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return any_of(added_tokens(self.tokenizer))

    @cached_property
    def _special_end(self) -> re.Pattern[str]:
        return at_the_end(self._special)

    def _ids(self, texts: list[str], *, special: bool) -> list[list[int]]:
        if not texts:  # which the tokenizer refuses
            return []
        if not self.tokenizer.is_fast:
            return self.tokenizer(texts, add_special_tokens=special)["input_ids"]
        # The tokenizer's own call also works out where each token stands in the text, and copies all of it.
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return [encoded.ids for encoded in backend.encode_batch_fast(texts, add_special_tokens=special)]

    @cached_property
    def _stops(self) -> tuple[str, ...]:
        return tuple(filter(None, (self._eos,))) if self.template is None else self.template.traits.stops

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: those that its chat template ends a turn with, and the end of text."""
        ids = [self.tokenizer.convert_tokens_to_ids(text) for text in self._stops if self._special.fullmatch(text)]
        return sorted({*ids, self.tokenizer.eos_token_id} - {None})

    @cached_property
    def stop_texts(self) -> list[str]:
        """Texts that end an answer and are no token of their own."""
        return [text for text in self._stops if not self._special.fullmatch(text)]

    def answer(self, prompt: Sequence[int], generated: Sequence[int]) -> str:
        """What a model answers: its text up to the end of its turn, without special tokens and reasoning.

        Args:
            prompt: Tokens that were to be continued.
            generated: Tokens that continue them, without the one that ends them.
        """
        return self._said(self._text(generated).removeprefix(self._header), opened=self._opens(prompt))

    def so_far(self, prompt: Sequence[int], generated: Sequence[int]) -> tuple[str, str]:
        """Reasoning and `answer` of a text that goes on, without an end that the next tokens may change.

        Args:
            prompt: Tokens that were to be continued.
            generated: Tokens that continue them until now.
        """
        text = self._text(generated)
        if self._header.startswith(text):  # which is not said
            return "", ""
        opening, closing = self._thinks
        text = text.removeprefix(self._header)
        thought, closed, _ = text.rpartition(closing)
        if not closed and (self._opens(prompt) or text.lstrip().startswith(opening)):
            thought = self._settled(text)
        thought = thought.strip().removeprefix(opening).strip()
        return self._not_text.sub("", thought), self._settled(self.answer(prompt, generated))

    def _opens(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends with an open block of reasoning."""
        return self._text(prompt[-16:]).rstrip().endswith(self._thinks[0])

    def _settled(self, text: str) -> str:
        """A text without what may be the beginning of a mark, or of a character of several tokens."""
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        starts = range(max(0, len(text) - max(map(len, self._marks_in_text))), len(text))
        begun = (at for at in starts if any(mark.startswith(text[at:]) for mark in self._marks_in_text))
        return text[: next(begun, len(text))]

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)  # which takes spaces from before commas

    @cached_property
    def _header(self) -> str:
        """What a model has to write itself before an answer where its prompt leaves room for reasoning."""
        traits = None if self.template is None else self.template.traits
        return "" if traits is None else traits.answered[len(shared(traits.asked, traits.answered)) :]

    def _said(self, text: str, *, opened: bool = False) -> str:
        """What is answered by a text: of a model, or of the data, which may hold marks too."""
        for stop in self._stops:
            text = text.partition(stop)[0]
        return self._not_text.sub("", spoken(text, self._thinks, opened=opened))

    @cached_property
    def _not_text(self) -> re.Pattern[str]:
        """Special tokens that a text holds none of."""
        return any_of(self._special_texts)

    @cached_property
    def _special_texts(self) -> tuple[str, ...]:
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        return *added, *self.tokenizer.all_special_tokens

    @cached_property
    def _marks_in_text(self) -> frozenset[str]:
        """Texts that end an answer, part it from reasoning, or are taken out of it."""
        return frozenset((*self._stops, *self._thinks, *self._special_texts))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything about the tokenizer that decides which tokens a text becomes."""
        backend = self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else self.tokenizer.get_vocab()
        special = self.tokenizer.special_tokens_map  # templates name them, and plain text ends with one
        parts = [type(self.tokenizer).__name__, backend, special, self.tokenizer.chat_template]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
