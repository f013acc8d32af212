"""What a prompt format is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

#: The keys under which messages hold reasoning, and chat templates look for it.
REASONING = ("reasoning_content", "reasoning", "thinking")


class RowError(ValueError):
    """A row is no example; the message stands behind "row 7 has "."""


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Args:
        role: ``"system"``, ``"user"``, ``"assistant"``, or another that chat templates know, such as ``"tool"``.
        text: What is said, as plain text.
        extra: What else a chat template is given of the message, such as ``tool_calls`` or ``reasoning_content``.
        supervised: Whether an answer is trained; that of others never is.
    """

    role: str
    text: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    supervised: bool = True


@dataclass(frozen=True)
class Example:
    """One row as a conversation that ends with an answer, which is scored. Answers are supervised, and nothing else.

    Args:
        turns: The conversation.
        others: Right answers beside the one it ends with.
        tools: Descriptions of what may be called, for the chat template.
        remarks: What is to be known of how the row was read; it stands behind "5 train rows have ".
        facts: What else metrics may want of the row, such as its ``choices``.
    """

    turns: tuple[Turn, ...]
    others: tuple[str, ...] = ()
    tools: Sequence[Any] = ()
    remarks: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def single(cls, prompt: str, completion: str, system: str | None = None) -> Example:
        """A question, its answer, and a system prompt of the row's own."""
        start = (Turn("system", system),) if system else ()
        return cls((*start, Turn("user", prompt), Turn("assistant", completion)))

    @property
    def prompt(self) -> str:
        """All that is said before the last answer, system prompt aside."""
        return "\n\n".join(turn.text for turn in self.turns[:-1] if turn.role != "system")

    @property
    def completion(self) -> str:
        """The last answer."""
        return self.turns[-1].text

    @property
    def references(self) -> tuple[str, ...]:
        """Every right answer, that of the conversation first."""
        return (self.completion, *self.others)

    def behind(self, turns: Sequence[Turn]) -> Example:
        """The same with turns in front, behind its system prompt."""
        if not turns:
            return self
        system = [turn for turn in self.turns[:1] if turn.role in ("system", "developer")]
        return replace(self, turns=(*system, *turns, *self.turns[len(system) :]))

    def each(self) -> Iterator[Example]:
        """An example for each right answer; what comes before it is supervised in the first alone."""
        yield self
        asked = tuple(replace(turn, supervised=False) for turn in self.turns[:-1])
        for answer in self.others:
            rest = tuple(other for other in self.references if other != answer)
            yield replace(self, turns=(*asked, replace(self.turns[-1], text=answer)), others=rest)


@dataclass(frozen=True)
class Format:
    """How the cells of a row become a conversation.

    Args:
        roles: Texts that the format needs; a mix maps a column to each.
        example: The conversation of a row, given as role to text (or, for structured roles, to what the cell holds).
            A role that may be missing is None then. Raises `RowError` for a row that is no example.
        optional: What may be missing.
        structured: Cells that the format takes as they are: lists, mappings, numbers.
        answer: The text that is learned; where a row has a list of it, each is a right answer. None by default.
        mapped: What is optional and only a mix gives, also where the data have a column of that name. A text of
            several words that is no column stands for itself.
        wrong: What is wrong with the rows of a split together, and what to do, where no row shows it; None where
            nothing is. It is given their answers, the reasons for which rows were left out, and the remarks, each once.
        keys: What the mix names for the format to look for within cells, such as the keys of messages.
        facts: Which facts its examples have, for metrics.
    """

    roles: tuple[str, ...]
    example: Callable[[Mapping[str, Any]], Example]
    optional: tuple[str, ...] = ()
    structured: tuple[str, ...] = ()
    answer: str = ""
    mapped: tuple[str, ...] = ()
    wrong: Callable[[Collection[str], Collection[str]], tuple[str, str] | None] | None = None
    keys: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()

    @property
    def all_roles(self) -> tuple[str, ...]:
        """Every role, needed ones first."""
        return tuple(dict.fromkeys((*self.roles, *self.structured, *self.optional)))


def with_system(example: Example, system: str | None) -> Example:
    """``example`` with a system turn in front, where it has none and there is one."""
    if not system or example.turns[0].role in ("system", "developer"):
        return example
    return replace(example, turns=(Turn("system", system), *example.turns))


def paragraphs(parts: Iterable[str | None]) -> str:
    """The parts that say something, an empty line between them."""
    return "\n\n".join(part for part in parts if part and part.strip())


def as_text(value: Any) -> str | None:
    """A cell as text; None where it holds nothing, or more than one value."""
    if isinstance(value, bool):
        return str(value).lower()  # as JSON has it
    return str(value) if isinstance(value, str | int | float) and value == value else None
