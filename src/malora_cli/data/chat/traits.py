"""What a chat template does, found by rendering a few made-up messages with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from malora_cli.data.chat.answers import THINK
from malora_cli.data.chat.rendering import Message, content, render, shared
from malora_cli.data.formats._base import REASONING, RowError
from malora_cli.errors import DataError

# Words that no template writes itself.
SYSTEM, QUESTION, ANSWER, _THOUGHT = "Zq1system", "Zq2question", "Zq3answer", "Zq4thought"
_NAME, _KEY, _VALUE, _CALL_ID = "zq5name", "zq6key", "zq7value", "zq8call00"
#: What templates' marks look like.
_MARK = re.compile(r"<[|｜][^<>\s]+[|｜]>|<\w+_of_\w+>")
#: How templates are told that no reasoning is wanted.
_QUIET = {"enable_thinking": False, "thinking": False}
#: How tool calls hold their arguments: as an object, or as JSON text.
Arguments = Literal["object", "text"]
_ARGUMENTS: tuple[Arguments, ...] = ("object", "text")


@dataclass(frozen=True)
class Traits:
    """What a chat template does.

    Args:
        parts: It takes contents as lists of parts, as templates of models that see pictures do.
        system: It takes a system message.
        quiet: Settings by which it asks for an answer without reasoning; none where it has none.
        asks: It writes something to ask for an answer.
        asked: What it writes behind the user's last words to ask for an answer without reasoning.
        answered: What it writes there before such an answer, as far as that is not the model's to say.
        close: All that it writes behind the last answer.
        end: The mark that ends an answer, which the model has to learn.
        call_end: The one that ends a tool call, where that is another.
        stops: Texts that end an answer or a tool call while it is generated.
        reasons: It shows reasoning that is given beside the words of an answer.
        thinks: What opens reasoning, and what closes it.
        arguments: How tool calls are to hold their arguments; None where it shows no calls.
        parallel: It shows several calls of a message.
        words: It shows what is said beside a call.
        tools: It shows the tools that may be called.
        roles: Roles of messages that it shows, beside user and assistant.
        strange: What it writes that looks like a mark and is no token, as where it is another model's.
    """

    parts: bool
    system: bool
    quiet: Mapping[str, bool]
    asks: bool
    asked: str
    answered: str
    close: str
    end: str
    call_end: str
    stops: tuple[str, ...]
    reasons: bool
    thinks: tuple[str, str]
    arguments: Arguments | None
    parallel: bool
    words: bool
    tools: bool
    roles: frozenset[str]
    strange: tuple[str, ...]


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of some texts, the longest first; nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted({*texts} - {""}, key=len, reverse=True))) or r"(?!)")


def at_the_end(texts: re.Pattern[str]) -> re.Pattern[str]:
    """Matches the same at the end of a text."""
    return re.compile(rf"(?:{texts.pattern})$")


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Tokens that are cut out of a text before all others are found in it."""
    return {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}


def special_marks(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches a token that chat templates may write as a mark; some tokenizers add white space too, which is none."""
    return any_of(filter(str.strip, added_tokens(tokenizer)))


def special_run(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches special tokens behind one another, white space before them included."""
    return re.compile(rf"\s*(?:{special_marks(tokenizer).pattern})+")


def header(asked: str, given: str) -> str:
    """What stands before an answer without reasoning.

    A template may write words of its own behind the header: an empty block of reasoning, the name of a channel. They
    are context. White space alone is not: it is the beginning of what the model says, as is a space behind them.

    Args:
        asked: The text that asks for an answer.
        given: The text before an answer that is there.
    """
    alike = shared(asked, given)
    own = given[len(alike) :]
    return given.rstrip(" ") if own.strip() else alike


def traits_of(tokenizer: PreTrainedTokenizerBase) -> Traits:
    """Probe the chat template of a tokenizer.

    Raises:
        DataError: It shows no messages.
    """
    parts = _takes_parts(tokenizer)
    loud = _Probe(tokenizer, parts)
    question = loud.question
    told = loud.text(question, ask=True, **_QUIET)
    quiet = {} if told in ("", loud.text(question, ask=True)) else _QUIET
    probe = replace(loud, settings=quiet)
    given, _, close = probe.text(question, probe.answer).rpartition(ANSWER)
    asked = probe.text(question, ask=True).rpartition(QUESTION)[2]
    end, stops = _ends(probe, close)
    arguments = next((kind for kind in _ARGUMENTS if probe.shows(_VALUE, question, probe.call(kind))), None)
    call = probe.call(arguments or "object")
    call_end = _call_end(probe, call, close)
    thinks = _thinks(loud)
    return Traits(
        parts=parts,
        system=probe.shows(SYSTEM, probe.say("system", SYSTEM), question),
        quiet=quiet,
        asks=probe.text(question, ask=True) != probe.text(question),
        asked=asked,
        answered=header(asked, given.rpartition(QUESTION)[2]),
        close=close,
        end=end,
        call_end=call_end,
        stops=tuple(dict.fromkeys([*stops, *filter(None, [call_end])])),
        reasons=thinks is not None,
        thinks=thinks or THINK,
        arguments=arguments,
        parallel=probe.text(question, {**call, "tool_calls": call["tool_calls"] * 2}).count(_VALUE) > 1,
        words=probe.shows(ANSWER, question, {**probe.answer, "tool_calls": call["tool_calls"]}),
        tools=probe.shows(_NAME, question, tools=[_TOOL]),
        roles=frozenset(role for role in ("tool", "developer") if _shows_role(probe, role)),
        strange=_strange(tokenizer, probe.text(question, probe.answer, question, probe.answer)),
    )


_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "What it is for.",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string", "description": "What it is."}}},
    },
}


@dataclass(frozen=True)
class _Probe:
    """Renders made-up messages; what the template refuses is no text."""

    tokenizer: PreTrainedTokenizerBase
    parts: bool
    settings: Mapping[str, bool] = field(default_factory=dict)

    def say(self, role: str, text: str, **extra: Any) -> Message:
        return {"role": role, "content": content(text, parts=self.parts), **extra}

    @property
    def question(self) -> Message:
        return self.say("user", QUESTION)

    @property
    def answer(self) -> Message:
        return self.say("assistant", ANSWER)

    def call(self, kind: Arguments) -> Message:
        arguments: Any = {_KEY: _VALUE} if kind == "object" else f'{{"{_KEY}": "{_VALUE}"}}'
        function = {"name": _NAME, "arguments": arguments}
        return self.say("assistant", "", tool_calls=[{"type": "function", "id": _CALL_ID, "function": function}])

    @property
    def result(self) -> Message:
        return self.say("tool", SYSTEM, name=_NAME, tool_call_id=_CALL_ID)

    def text(self, *messages: Message, **options: Any) -> str:
        try:
            return render(self.tokenizer, messages, **{**self.settings, **options})
        except RowError:
            return ""

    def shows(self, what: str, *messages: Message, tools: Sequence[Any] = ()) -> bool:
        return what in self.text(*messages, tools=tools)


def _takes_parts(tokenizer: PreTrainedTokenizerBase) -> bool:
    for parts in (False, True):
        probe = _Probe(tokenizer, parts)
        text = probe.text(probe.question, probe.answer)
        if QUESTION in text and ANSWER in text:
            return parts
    raise DataError(
        "the model's chat template does not show what a user and an assistant say",
        where="chat template",
        fix="Set model.chat_template to another one, or to plain.",
    )


def _ends(probe: _Probe, close: str) -> tuple[str, tuple[str, ...]]:
    """The mark that ends an answer, and all texts that do."""
    run, eos = special_run(probe.tokenizer), str(probe.tokenizer.eos_token or "")
    found = run.match(close)
    if found is None and not close.strip():  # what begins the next turn may end this one
        found = run.match(probe.text(probe.question, probe.answer, probe.question).rpartition(ANSWER)[2])
    if found is None:
        end = close.rstrip() or eos
        return end, tuple(dict.fromkeys(text for text in (end.strip(), eos) if text))
    marks = special_marks(probe.tokenizer).findall(found.group() + close)
    return found.group(), tuple(dict.fromkeys([*marks, *([eos] if eos else [])]))


def _call_end(probe: _Probe, call: Message, close: str) -> str:
    """The mark that ends a tool call, where it is not the one that ends an answer."""
    text = probe.text(probe.question, call)
    if close.strip():
        found = at_the_end(special_marks(probe.tokenizer)).search(text.rstrip())
        return "" if found is None or close.strip().endswith(found.group()) else found.group()
    behind = probe.text(probe.question, call, probe.result).removeprefix(text)  # the next turn may end this one
    found = special_run(probe.tokenizer).match(behind)
    return "" if found is None or not text else found.group()


def _strange(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, ...]:
    known = added_tokens(tokenizer)
    return tuple(dict.fromkeys(mark for mark in _MARK.findall(text) if mark not in known))


def _thinks(probe: _Probe) -> tuple[str, str] | None:
    """What opens reasoning, and what closes it; None where it is not shown."""
    message = probe.say("assistant", ANSWER, **dict.fromkeys(REASONING, _THOUGHT))
    before, _, behind = probe.text(probe.question, message).partition(_THOUGHT)
    between, found, _ = behind.partition(ANSWER)
    asked = probe.text(probe.question, ask=True)
    if not found or not between.strip():
        return None
    words = before.removeprefix(asked).split() or asked.split()
    return words[-1], between.strip()


def _shows_role(probe: _Probe, role: str) -> bool:
    if role != "tool":  # a template that shows whatever role there is knows none of them
        told = probe.say(role, SYSTEM)
        return role in str(probe.tokenizer.chat_template) and probe.shows(SYSTEM, told, probe.question)
    calls = [(probe.question, probe.call(kind)) for kind in _ARGUMENTS]
    return any(probe.shows(SYSTEM, *before, probe.result) for before in calls)
