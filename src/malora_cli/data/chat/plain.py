"""Conversations of models without a chat template: text, and the end of text behind each answer."""

from __future__ import annotations

from malora_cli.data.chat.answers import THINK, ended, spoken
from malora_cli.data.chat.template import Rendered, Segment
from malora_cli.data.formats._base import REASONING, Example, RowError, with_system


def plain(example: Example, system: str | None, eos: str, *, last: bool = False) -> Rendered:
    """The text of an example.

    Args:
        example: The conversation.
        system: System prompt of examples without their own.
        eos: Text that ends an answer.
        last: Supervise the last answer alone.

    Raises:
        RowError: Something of it is no text.
    """
    turns = with_system(example, system).turns
    if example.tools or any("tool_calls" in turn.extra for turn in turns):
        raise RowError("tools, and the model has no chat template that could show them")
    if any(key in turn.extra for turn in turns for key in REASONING):
        raise RowError("reasoning beside an answer, and the model has no chat template that could show it")
    found: list[Segment] = []
    context = ""
    for number, turn in enumerate(turns):
        answer = turn.role == "assistant"
        if answer and turn.supervised and not (last and number < len(turns) - 1):
            found += [Segment(context, supervised=False), Segment(ended(turn.text, eos), supervised=True)]
            context = "\n"
        else:
            context += ended(turn.text, eos if answer else "") + ("\n\n" if turn.role == "system" else "\n")
    if not found:
        raise RowError("no answer that is to be trained")
    return Rendered([found], spoken(turns[-1].text, THINK))
