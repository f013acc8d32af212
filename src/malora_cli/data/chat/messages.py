"""From the turns of an example to the messages that a chat template takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from malora_cli.data.chat.answers import parted
from malora_cli.data.chat.rendering import Message, content
from malora_cli.data.chat.traits import Arguments, Traits
from malora_cli.data.formats._base import REASONING, Example, RowError, Turn, paragraphs

#: Said of examples whose system prompt a template without a system role is given.
FOLDED = "a system prompt that stands in the user's first turn, since the model's chat template knows none"
#: Said of examples of which a template shows a tool call alone.
BESIDE = "words beside a tool call, which the model's chat template leaves out"


@dataclass(frozen=True)
class Conversation:
    """An example as its template takes it.

    Args:
        turns: What is said.
        messages: The message of each turn.
        tools: What may be called.
        remarks: What is to be known of it.
    """

    turns: Sequence[Turn]
    messages: Sequence[Message]
    tools: Sequence[Any]
    remarks: tuple[str, ...]


def conversation_of(example: Example, system: str | None, traits: Traits) -> Conversation:
    """The messages of an example.

    Args:
        example: The example.
        system: System prompt of examples without their own; None leaves it to the template.
        traits: What the template does.

    Raises:
        RowError: The template would leave out something of it.
    """
    if example.tools and not traits.tools:
        ways = 'model.chat_template names another, `columns: {tools: "{{ none }}"}` trains without'
        raise RowError(f"tools, which the model's chat template leaves out ({ways})")
    turns = example.turns
    if system is not None and turns[0].role not in ("system", "developer"):
        turns = (Turn("system", system), *turns)
    turns = _known(turns, traits)
    folded = not traits.system and turns[0].role == "system"
    beside = not traits.words and any(turn.text.strip() and turn.extra.get("tool_calls") for turn in turns)
    remarks = (FOLDED,) * (folded and bool(turns[0].text.strip())) + (BESIDE,) * beside
    turns = _folded(turns) if folded else turns
    return Conversation(turns, [_message(turn, traits) for turn in turns], example.tools, remarks)


def _known(turns: tuple[Turn, ...], traits: Traits) -> tuple[Turn, ...]:
    if turns[0].role == "developer" and "developer" not in traits.roles:  # which is what newer models call it
        turns = (replace(turns[0], role="system"), *turns[1:])
    for turn in turns:
        if turn.role not in {"system", "user", "assistant", *traits.roles}:
            raise RowError(f"a message of the role '{turn.role}', which the model's chat template leaves out")
    return turns


def _folded(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """A system prompt in the user's first turn; an empty one is none."""
    system, rest = turns[0], list(turns[1:])
    first = next((number for number, turn in enumerate(rest) if turn.role == "user"), None)
    if not system.text.strip():
        return tuple(rest)
    if first is None:
        return (replace(system, role="user"), *rest)
    rest[first] = replace(rest[first], text=paragraphs((system.text, rest[first].text)))
    return tuple(rest)


def _message(turn: Turn, traits: Traits) -> Message:
    turn = _apart(turn) if traits.reasons else turn
    extra = dict(turn.extra)
    if calls := extra.get("tool_calls"):
        if traits.arguments is None:
            raise RowError("a tool call, which the model's chat template leaves out")
        if len(calls) > 1 and not traits.parallel:
            raise RowError("several tool calls in one message, of which the model's chat template leaves out some")
        extra["tool_calls"] = [_call(call, traits.arguments) for call in calls]
    return {"role": turn.role, "content": content(turn.text, parts=traits.parts), **extra}


def _apart(turn: Turn) -> Turn:
    """A turn whose reasoning stands beside its text, where it began it."""
    thought, text = parted(turn.text)
    if turn.role != "assistant" or text == turn.text:
        return turn
    return replace(turn, text=text, extra={**turn.extra, **dict.fromkeys(REASONING, thought)})


def reasoning_of(turn: Turn) -> str:
    """The reasoning of an answer, beside its text or before it; empty where there is none."""
    given = next((turn.extra[key] for key in REASONING if isinstance(turn.extra.get(key), str)), "")
    return str(given).strip() or parted(turn.text)[0]


def _call(call: Mapping[str, Any], kind: Arguments) -> dict[str, Any]:
    """A tool call with its arguments in the form that the template takes."""
    function = dict(call["function"])
    arguments = function.get("arguments")
    if kind == "object" and isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments or "{}")
        except ValueError:
            raise RowError("a tool call whose arguments are not valid JSON") from None
    elif kind == "text" and not isinstance(arguments, str):
        function["arguments"] = json.dumps(arguments, ensure_ascii=False)
    return {**call, "type": "function", "function": function}
