"""From an example to text in segments: context, and the answers that are supervised, each with the end of its turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from malora_cli.data.chat.answers import THINK, ended, spoken
from malora_cli.data.chat.messages import Conversation, conversation_of, reasoning_of
from malora_cli.data.chat.rendering import Message, content, render, shared
from malora_cli.data.chat.traits import ANSWER, QUESTION, SYSTEM, Traits, at_the_end, header, special_marks, traits_of
from malora_cli.data.formats._base import REASONING, Example, RowError, Turn

_ONLY = (Turn("system", SYSTEM), Turn("user", QUESTION), Turn("assistant", ANSWER))
#: Said of conversations of which each answer is a row.
APART = "several answers, each a row of its own, since the model's chat template rewrites earlier turns"


@dataclass(frozen=True)
class Segment:
    """A part of an example's text that is tokenised by itself."""

    text: str
    supervised: bool


@dataclass(frozen=True)
class Rendered:
    """An example as text.

    Args:
        rows: Rows to train on, the segments of each. They are several where an answer is seen behind another history
            than the answer before it, as with templates that show the reasoning of the last answer alone.
        reference: What the last answer says.
        remarks: What is to be known of it.
    """

    rows: Sequence[Sequence[Segment]]
    reference: str
    remarks: tuple[str, ...] = ()


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def traits(self) -> Traits:
        """What it does.

        Raises:
            DataError: It shows no messages.
        """
        return traits_of(self.tokenizer)

    @cached_property
    def _ending(self) -> re.Pattern[str]:
        return at_the_end(special_marks(self.tokenizer))

    def rendered(self, example: Example, system: str | None = None, *, last: bool = False) -> Rendered:
        """The text of an example.

        Every answer stands behind the text that asks for it where the model is served: the template's own rendering of
        what was said before.

        Args:
            example: The conversation.
            system: System prompt of examples without their own; None leaves it to the template.
            last: Supervise the last answer alone.

        Raises:
            RowError: The template refuses the conversation, or leaves out something of it.
        """
        told = conversation_of(example, system, self.traits)
        rows: list[list[Segment]] = []
        text = answer = ""
        for at, turn in enumerate(told.turns):
            if turn.role != "assistant" or not turn.supervised or (last and at < len(told.turns) - 1):
                continue
            context, answer = self._answered(told, at)
            if not rows or not context.startswith(text):
                rows.append([])
                text = ""
            rows[-1] += [Segment(context[len(text) :], supervised=False), Segment(answer, supervised=True)]
            text = context + answer
        if not rows:
            raise RowError("no answer that is to be trained")
        remarks = told.remarks if len(rows) == 1 else (*told.remarks, APART)
        return Rendered(rows, spoken(answer.removesuffix(self.traits.end), self.traits.thinks), remarks)

    @cached_property
    def _lead(self) -> str | None:
        """What the template writes between the prompt of an only answer and its words; None where that is not fixed."""
        leads: set[str | None] = set()
        for turns in (_ONLY, _ONLY[1:]):
            told = conversation_of(Example(turns), None, self.traits)
            try:
                context, _ = self._compared(told, len(told.turns) - 1)
                lead, _, close = self._text(told.messages, told, **self.traits.quiet).partition(ANSWER)
            except RowError:
                return None
            leads.add(lead[len(context) :] if lead.startswith(context) and close == self.traits.close else None)
        return leads.pop() if len(leads) == 1 else None

    def _answered(self, told: Conversation, at: int) -> tuple[str, str]:
        """What stands before an answer, and the answer with its end."""
        return self._only(told) or self._compared(told, at)

    def _only(self, told: Conversation) -> tuple[str, str] | None:
        """The same from one rendering instead of two, for an only answer that the template writes as it is."""
        turns, traits = told.turns, self.traits
        roles = [turn.role for turn in turns]
        if roles[roles[0] == "system" :] != ["user", "assistant"] or told.tools or any(turn.extra for turn in turns):
            return None
        if self._lead is None or reasoning_of(turns[-1]):
            return None
        whole, answer = self._text(told.messages, told, **traits.quiet), f"{self._lead}{turns[-1].text}{traits.close}"
        context = whole.removesuffix(answer)
        if context == whole or not context.endswith(traits.answered):
            return None
        return context, self._ended(answer, told, len(turns) - 1)

    def _compared(self, told: Conversation, at: int) -> tuple[str, str]:
        """What stands before an answer, and the answer with its end: where the text with it goes on from its prompt."""
        turn = told.turns[at]
        thought = reasoning_of(turn)
        settings = {} if thought else self.traits.quiet
        before = told.messages[:at]
        # An answer may begin the conversation, and transformers renders nothing of no message.
        asked = self._text(before, told, ask=True, **settings) if before else self._given(before, told)
        whole = self._text(told.messages[: at + 1], told, **settings)
        if thought and not self._shown(told, at, asked, whole):
            return asked, self._reasoned(turn, thought, asked)
        context = asked if thought and self.traits.asks else self._context(before, told, asked)
        prompt = next(filter(whole.startswith, (context, asked)), None) or self._shared(asked, whole)
        if whole.startswith(prompt):
            return prompt, self._ended(whole[len(prompt) :], told, at)
        given = self._given(before, told)  # the template rewrites what came before the answer
        answer = whole[len(given) :] if whole.startswith(given) else turn.text
        return context, self._ended(answer, told, at)

    def _text(self, messages: Sequence[Message], told: Conversation, **options: bool) -> str:
        return render(self.tokenizer, messages, tools=told.tools, **options)

    def _context(self, before: Sequence[Message], told: Conversation, asked: str) -> str:
        """A prompt with the header of an answer without reasoning."""
        traits = self.traits
        if asked.endswith(traits.asked):
            return asked[: len(asked) - len(traits.asked)] + traits.answered
        given = self._given(before, told)  # behind a tool's message the header is another one
        return header(asked, given) if len(asked) - len(shared(asked, given)) <= len(traits.asked) else asked

    def _shared(self, asked: str, whole: str) -> str:
        """A prompt as far as the answer goes on from it, where no more than its header differs."""
        alike = shared(asked, whole)
        return alike if len(asked) - len(alike) <= len(self.traits.asked) else asked

    def _given(self, before: Sequence[Message], told: Conversation) -> str:
        """What the template writes before the words of an answer."""
        answer = {"role": "assistant", "content": content(ANSWER, parts=self.traits.parts)}
        return self._text([*before, answer], told, **self.traits.quiet).rpartition(ANSWER)[0]

    def _shown(self, told: Conversation, at: int, asked: str, whole: str) -> bool:
        """Whether the template has written the reasoning of an answer."""
        *before, answer = told.messages[: at + 1]
        silent = {key: value for key, value in answer.items() if key not in REASONING}
        if silent == answer:  # it is a part of the text
            return THINK[1] in whole[len(shared(asked, whole)) :]
        return self._text([*before, silent], told) != whole

    def _reasoned(self, turn: Turn, thought: str, prompt: str) -> str:
        """An answer with the reasoning that the template leaves out, where its prompt has opened a block for it."""
        traits = self.traits
        opening, closing = traits.thinks
        if not prompt.rstrip().endswith(opening):
            raise RowError("reasoning, which the model's chat template leaves out")
        return f"{thought}\n{closing}\n\n{spoken(turn.text, traits.thinks)}{traits.end}"

    def _ended(self, answer: str, told: Conversation, at: int) -> str:
        """An answer with its end, once."""
        traits, end = self.traits, self.traits.end
        if traits.close and answer.endswith(traits.close):
            answer = answer[: -len(traits.close)]
        elif traits.close.strip() and self._ending.search(answer.rstrip()):  # as a tool call has an end of its own
            return answer.rstrip()
        elif traits.close.strip():
            answer = answer.rstrip()
        elif told.turns[at].extra.get("tool_calls"):
            end = traits.call_end or end
        return ended(answer, end)
