"""From text to tokens: the tokenizer's chat template, the prompt as context, the completion and its end supervised."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from malora_cli.data.formats._base import Example
from malora_cli.errors import DataError


@dataclass(frozen=True)
class Encoded:
    """One example as tokens: ``input_ids[prompt_tokens:]`` are supervised, end-of-turn token included."""

    input_ids: list[int]
    prompt_tokens: int


class Encoder:
    """Renders and tokenises examples for one model.

    Prompt and completion are tokenised apart, so that the model is trained from the very tokens it will be asked to
    continue; rendered together, a tokenizer may merge across the seam.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def render(self, example: Example, system: str | None) -> tuple[str, str]:
        """The prompt up to where the answer begins, and the answer up to and including the end of the turn.

        Args:
            example: The text.
            system: System prompt; None leaves it to the template.

        Raises:
            DataError: The template refuses the conversation.
        """
        messages = [{"role": "user", "content": example.prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        if self.tokenizer.chat_template is None:
            context = f"{system}\n\n" if system else ""
            return f"{context}{example.prompt}\n", f"{example.completion}{self.tokenizer.eos_token or ''}"
        prompt = self._apply(messages, add_generation_prompt=True)
        whole = self._apply([*messages, {"role": "assistant", "content": example.completion}])
        # Some templates rewrite what came before the answer; then the answer itself is all we can tell.
        answer = whole[len(prompt) :] if whole.startswith(prompt) else example.completion
        answer = answer.rstrip()
        if answer.strip() == example.completion.strip():  # the template does not end the turn
            answer += self.tokenizer.eos_token or ""
        return prompt, answer

    def _apply(self, messages: list[dict[str, str]], **options: Any) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except TemplateError as error:
            roles = " and ".join(message["role"] for message in messages)
            raise DataError(
                f"the model's chat template refuses messages of {roles} ({' '.join(str(error).split())})",
                where="chat template",
                fix="Leave `system` out." if messages[0]["role"] == "system" else "Use a model with another template.",
            ) from error

    def encode(self, example: Example, system: str | None) -> Encoded:
        """Tokens of one example."""
        prompt, answer = self.render(example, system)
        # A chat template writes its own special tokens; plain text wants the tokenizer's.
        plain = self.tokenizer.chat_template is None
        prompt_ids = self.tokenizer(prompt, add_special_tokens=plain)["input_ids"]
        if plain and prompt_ids[-1:] == [self.tokenizer.eos_token_id]:  # the end of a text, and this is its middle
            prompt_ids = prompt_ids[:-1]
        answer_ids = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return Encoded([*prompt_ids, *answer_ids], len(prompt_ids))

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's end of text and the template's end of turn."""
        last = self.encode(Example("?", "!"), None).input_ids[-1]
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
