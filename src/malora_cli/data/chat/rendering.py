"""Messages as a tokenizer's chat template writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from os.path import commonprefix
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from malora_cli.data.formats._base import RowError

Message = Mapping[str, Any]

#: What a template may end in. Templates are programs of others: a message they did not think of is no fault of ours.
_FAULTS = (
    *(TemplateError, TypeError, ValueError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError),
)
#: The day that Llama 3 takes where it knows none. Rows must not change from one day to the next.
_TODAY = datetime(2024, 7, 26)
_CODES = ("%A", "%a", "%B", "%b", "%-d", "%d", "%m", "%Y", "%y", "%H", "%M", "%S")
#: In the place of transformers' function of that name: templates are given data, not functions.
_DATE = (
    "{%- macro strftime_now(form) %}{{ form"
    + "".join(f" | replace('{code}', '{_TODAY.strftime(code)}')" for code in _CODES)
    + " }}{% endmacro %}"
)


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Sequence[Any] = (),
    ask: bool = False,
    **switches: Any,
) -> str:
    """The text of a conversation.

    Args:
        tokenizer: Its chat template writes the text.
        messages: As the template takes them.
        tools: Descriptions of what may be called.
        ask: End with the header of the answer that is asked for.
        switches: Settings of the template, such as ``enable_thinking``.

    Raises:
        RowError: The template refuses the conversation.
    """
    try:
        template = tokenizer.get_chat_template(tools=list(tools) or None)
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                add_generation_prompt=ask,
                tokenize=False,
                chat_template=_DATE + template if "strftime_now" in template else template,
                **switches,
            )
        )
    except _FAULTS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RowError(f"a conversation that the model's chat template refuses ({reason})") from error


def content(text: str, *, parts: bool) -> Any:
    """What a message says, in the form that the template takes."""
    return [{"type": "text", "text": text}] if parts else text


def shared(one: str, other: str) -> str:
    """What two texts begin with alike."""
    return commonprefix([one, other])  # noqa: RUF071 (characters are meant, not folders)
