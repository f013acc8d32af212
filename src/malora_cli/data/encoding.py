"""From text to tokens: the tokenizer's chat template, the prompt as context, the answers and their ends supervised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from malora_cli.data.formats._base import Example, with_system
from malora_cli.errors import DataError


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


@dataclass(frozen=True)
class Segment:
    """A part of an example's text that is tokenised by itself."""

    text: str
    supervised: bool


class Encoder:
    """Renders and tokenises examples for one model.

    Prompts and answers are tokenised apart, so that the model is trained from the very tokens it will be asked to
    continue; rendered together, a tokenizer may merge across the seam.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def segments(self, example: Example, system: str | None = None) -> list[Segment]:
        """The text of an example: what comes before an answer, and the answer with the end of its turn, in turns.

        Args:
            example: The conversation.
            system: System prompt of examples without their own; None leaves it to the template.

        Raises:
            DataError: The template refuses the conversation, or rewrites earlier turns of it.
        """
        if self.tokenizer.chat_template is None:
            return self._plain(with_system(example, system))
        messages = [{"role": turn.role, "content": turn.text} for turn in example.turns]
        if system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        found: list[Segment] = []
        rendered = ""  # what the template itself has written of the conversation so far
        for at, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._apply(messages[:at], add_generation_prompt=True)
            if not prompt.startswith(rendered):
                raise DataError(
                    "the model's chat template changes earlier turns as the conversation goes on",
                    where="chat template",
                    fix="Set model.chat_template to another, or train on single turns.",
                )
            whole = self._apply(messages[: at + 1])
            # Some templates rewrite what came before the answer; then the answer itself is all we can tell.
            answer = whole[len(prompt) :] if whole.startswith(prompt) else message["content"]
            answer = answer.rstrip()
            found.append(Segment(prompt[len(rendered) :], supervised=False))
            rendered = prompt + answer
            if answer.strip() == message["content"].strip():  # the template does not end the turn
                answer += self.tokenizer.eos_token or ""
            found.append(Segment(answer, supervised=True))
        return found

    def _plain(self, example: Example) -> list[Segment]:
        found: list[Segment] = []
        context = ""
        for turn in example.turns:
            if turn.role == "assistant":
                found += [
                    Segment(context, supervised=False),
                    Segment(f"{turn.text}{self.tokenizer.eos_token or ''}", supervised=True),
                ]
                context = "\n"
            else:
                context += f"{turn.text}\n\n" if turn.role == "system" else f"{turn.text}\n"
        return found

    def _apply(self, messages: list[dict[str, str]], **options: Any) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except TemplateError as error:
            roles = " and ".join(dict.fromkeys(message["role"] for message in messages)) or "nobody"
            system = bool(messages) and messages[0]["role"] == "system"
            raise DataError(
                f"the model's chat template refuses messages of {roles} ({' '.join(str(error).split())})",
                where="chat template",
                fix="Leave `system` out." if system else "Use a model with another template.",
            ) from error

    def encode(self, example: Example, system: str | None = None) -> Encoded:
        """Tokens of one example."""
        return self.tokenise([self.segments(example, system)])[0]

    def tokenise(self, rows: Sequence[Sequence[Segment]]) -> list[Encoded]:
        """Tokens of many examples, in one call of the tokenizer: an order of magnitude faster than one by one."""
        plain = self.tokenizer.chat_template is None
        tokens = iter(self._ids([segment.text for row in rows for segment in row], special=False))
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
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's end of text and the template's end of turn."""
        last = self.encode(Example.single("?", "!")).input_ids[-1]
        # Where the turn ends in plain text, its last token is one that answers hold as well.
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}
        return sorted(({last} & special | {self.tokenizer.eos_token_id}) - {None})

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything about the tokenizer that decides which tokens a text becomes."""
        backend = self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else self.tokenizer.get_vocab()
        special = self.tokenizer.special_tokens_map  # templates name them, and plain text ends with one
        parts = [type(self.tokenizer).__name__, backend, special, self.tokenizer.chat_template]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
