"""Lists of messages, as OpenAI, Hugging Face and ShareGPT write them, as conversations."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from malora_cli.data.formats._base import REASONING, Example, Format, RowError, Turn, as_text, with_system

#: Where a message says who speaks, and what is said.
_SPEAKER, _TEXT = ("role", "from", "speaker"), ("content", "value", "text")
#: What data call the roles, case aside.
_ROLES = {
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
#: What chat templates are given of a message beside who says what.
_EXTRA = ("name", "tool_call_id")
_JSON_LIST = re.compile(r'\s*\[\s*[]{"[]')
#: How data mark an answer that is not to be trained.
_WEIGHTS = ("weight", "train", "loss")


def conversations_in(column: str) -> Format:
    """The format of rows whose column of this name holds a list of messages."""
    return Format(
        roles=(),
        structured=(column, "tools", "answer"),
        optional=("system", "tools", "answer"),
        mapped=("answer",),
        keys=("role", "content"),
        example=lambda row: conversation(row, row[column]),
    )


def conversation(row: Mapping[str, Any], messages: Any) -> Example:
    """A list of messages as a conversation.

    Args:
        row: What the format is given: ``role`` and ``content`` name the keys of a message where they are not usual
            ones, ``speakers`` the roles of names that are not; ``tools`` are those that may be called, ``system`` is
            the system prompt of a conversation without one, ``answer`` the end of one that is not answered.
        messages: A list of mappings, or the mapping of lists that some Arrow files hold instead; a list of texts, the
            user's first; or one text, in which ``speakers`` stand at the beginning of lines.

    Raises:
        RowError: It is no conversation that ends with an answer.
    """
    turns = _turns(messages, row)
    others: tuple[str, ...] = ()
    if row.get("answer") is not None:
        if turns and turns[-1].role == "assistant":
            raise RowError("a conversation that is answered, and another answer beside it")
        answer, others = _answer(row["answer"], row)
        turns = (*turns, answer)
    if not turns:
        raise RowError("a conversation of no message")
    if turns[-1].role != "assistant":
        way = " (if that is who answers, say so by the task's speakers)" if turns[-1].role == "system" else ""
        raise RowError(f"a conversation that ends with the {turns[-1].role}, so its end is not answered{way}")
    if any(turn.role in ("system", "developer") for turn in turns[1:]):
        raise RowError("a system message that is not the first")
    return with_system(Example(_until_trained(turns), others, tools=_tools(row.get("tools"))), row.get("system"))


def _until_trained(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns up to the last answer that is trained, and so scored; all of them where none is."""
    trained = (number for number, turn in enumerate(turns, start=1) if turn.role == "assistant" and turn.supervised)
    return turns[: max(trained, default=len(turns))]


def _turns(messages: Any, row: Mapping[str, Any]) -> tuple[Turn, ...]:
    if isinstance(messages, str) and not _JSON_LIST.match(messages):
        return _parted(messages, row.get("speakers") or {})
    written = isinstance(messages, str)
    messages = _loaded(messages, "a list of messages")
    if isinstance(messages, dict) and all(isinstance(values, list) for values in messages.values()):
        messages = [dict(zip(messages, values, strict=False)) for values in zip(*messages.values(), strict=False)]
    if isinstance(messages, list) and all(isinstance(message, str) for message in messages):
        return tuple(Turn(("user", "assistant")[number % 2], text) for number, text in enumerate(messages))
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise RowError("no list of messages")
    if not written:
        messages = [{key: _filled(value) for key, value in message.items()} for message in messages]
    return tuple(_turn(message, row) for message in messages)


def _parted(text: str, speakers: Mapping[str, str]) -> tuple[Turn, ...]:
    """The turns of a conversation in one text; an answer that is yet to come is none."""
    if not speakers:
        way = 'say who speaks, as in `speakers: {"Human:": user, "Assistant:": assistant}` of the task'
        raise RowError(f"a conversation that is one text; {way}")
    before, *parts = _parting(tuple(speakers)).split(text)
    if before.strip():
        raise RowError(f"a text before the first of its speakers, '{before.strip()[:40]}'")
    turns = [Turn(speakers[name], said.strip()) for name, said in zip(parts[::2], parts[1::2], strict=True)]
    return tuple(turns if turns and turns[-1].text else turns[:-1])


@cache
def _parting(speakers: tuple[str, ...]) -> re.Pattern[str]:
    names = "|".join(map(re.escape, sorted(speakers, key=len, reverse=True)))
    return re.compile(rf"^[ \t]*({names})", re.MULTILINE)


def _turn(message: Mapping[str, Any], row: Mapping[str, Any]) -> Turn:
    speaker = _key(message, row.get("role"), _SPEAKER)
    name = message.get(speaker)
    if not isinstance(name, str):
        raise RowError(f"a message without text as '{speaker}'")
    speakers = (row.get("speakers") or {}).items()
    role = next((role for other, role in speakers if other.casefold() == name.casefold()), _ROLES.get(name.casefold()))
    if role is None:
        known = "system, user, assistant, tool"
        raise RowError(f"a message of the unknown role '{name[:40]}' (known: {known}; others by the task's speakers)")
    key = _key(message, row.get("content"), _TEXT)
    text = _text(message.get(key), key)
    extra = _extra(message)
    if role == "call":
        role, text, extra = "assistant", "", {**extra, "tool_calls": _calls(_loaded(text or "", "a tool call"))}
    if text is None and "tool_calls" not in extra:
        raise RowError(f"a message without text as '{key}'")
    return Turn(role, text or "", extra, supervised=all(_trained(message, key) for key in _WEIGHTS))


def _answer(given: Any, row: Mapping[str, Any]) -> tuple[Turn, tuple[str, ...]]:
    """An answer that stands by itself, and others as right: texts, or a message, the last where there are several."""
    several = given if isinstance(given, list) else [given]
    texts = [text for one in several if (text := as_text(one)) is not None]
    if several and len(texts) == len(several):
        first, *others = dict.fromkeys(texts)
        return Turn("assistant", first), tuple(others)
    if several and isinstance(several[-1], Mapping):
        return _turn(several[-1], row), ()
    raise RowError("an answer that is neither a text nor a message")


def _trained(message: Mapping[str, Any], key: str) -> bool:
    """Whether a message's weight lets it be trained; None is what tables hold where a message has none."""
    weight = message.get(key)
    if weight not in (None, 0, 1):
        raise RowError(f"a message of the {key} {weight!r}: an answer is trained (1) or not (0)")
    return weight is None or bool(weight)


def _key(message: Mapping[str, Any], given: str | None, usual: Sequence[str]) -> str:
    """The key of a message that says something: the one that is given, or the first usual one that is there."""
    if given is not None:
        if given not in message:
            raise RowError(f"a message without '{given}'")
        return given
    return next((key for key in usual if message.get(key) is not None), usual[0])


def _text(said: Any, key: str) -> str | None:
    """What a message says; None where that is nothing."""
    if said is None or isinstance(said, str):
        return said
    if not isinstance(said, list):
        raise RowError(f"a message without text as '{key}'")
    return "".join(_part(part, key) for part in said)


def _part(part: Any, key: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        what = f"a part of the kind '{kind}'" if kind not in (None, "text") else "a part without text"
        raise RowError(f"a message with {what} in '{key}', and only text is trained")
    return text


def _extra(message: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: message[key] for key in _EXTRA if isinstance(message.get(key), str)}
    if calls := _loaded(message.get("tool_calls") or message.get("function_call"), "a tool call"):
        found["tool_calls"] = _calls(calls)
    reasoning = next((message[key] for key in REASONING if isinstance(message.get(key), str)), "")
    return found | (dict.fromkeys(REASONING, reasoning) if reasoning.strip() else {})


def _calls(given: Any) -> list[dict[str, Any]]:
    """Tool calls as OpenAI writes them; a call may also stand by itself, and without the wrapping of its kind."""
    found = []
    for call in given if isinstance(given, list) else [given]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError("a tool call that does not name a function")
        wanted = {"name": function["name"], "arguments": function.get("arguments") or {}}
        identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        found.append({**identity, "type": "function", "function": wanted})
    return found


def _tools(given: Any) -> tuple[Any, ...]:
    """Descriptions of tools as OpenAI writes them."""
    if not given:
        return ()
    tools = _loaded(given, "tools") if isinstance(given, str) else _filled(given)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("tools that are not a list of descriptions")
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)


def _filled(value: Any) -> Any:
    """A value without the keys that hold nothing.

    Tables give every mapping in a column the keys of all others: a call of one function would be trained with null for
    the arguments of each other one.
    """
    if isinstance(value, dict):
        return {key: _filled(one) for key, one in value.items() if one is not None}
    return [_filled(one) for one in value] if isinstance(value, list) else value


def _loaded(given: Any, what: str) -> Any:
    """A value that may also be written as JSON."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except ValueError:
        raise RowError(f"{what} that is not valid JSON") from None
