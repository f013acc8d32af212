"""A question with choices, answered by a letter.

A row such as ``{"question": "What melts ice?", "choices": ["cold", "heat"], "answer": 1}`` becomes the user's turn::

    What melts ice?

    A. cold
    B. heat

    Answer with the letter alone.

and the answer ``"B"``. ``choices`` is a list, several columns (``choices: [opa, opb]``), or ARC's mapping of ``text``
and ``label``; ``answer`` is a position from 0, a label (without labels, a letter), or the text of a choice. A
column for the role ``context`` stands above the question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from malora_cli.data.formats._base import Example, Format, RowError, paragraphs


def _example(row: Mapping[str, Any]) -> Example:
    texts, labels = _choices(row["choices"])
    right = _position(row["answer"], texts, labels)
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, texts, strict=False))
    prompt = paragraphs((row["context"], row["question"], listed, "Answer with the letter alone."))
    return Example.single(prompt, ascii_uppercase[right])


def _choices(given: Any) -> tuple[list[str], list[str]]:
    """The texts of the choices and what the data call them."""
    labels: Any = None
    if isinstance(given, dict):
        given, labels = given.get("text"), given.get("label")
    if not isinstance(given, Sequence) or isinstance(given, str) or not 2 <= len(given) <= len(ascii_uppercase):
        raise RowError("no list of 2 to 26 choices")
    if any(choice is None or isinstance(choice, list | dict) or not str(choice).strip() for choice in given):
        raise RowError("a choice without text")
    if labels is None:
        labels = list(ascii_uppercase[: len(given)])
    if not isinstance(labels, list) or len(labels) != len(given):
        raise RowError("not as many labels as choices")
    return [str(choice) for choice in given], [str(label) for label in labels]


def _position(answer: Any, texts: Sequence[str], labels: Sequence[str]) -> int:
    text = str(answer).strip()
    found = [number for number, label in enumerate(labels) if label == text and not isinstance(answer, int)]
    if not found and text.isdecimal() and text.isascii():
        found = [int(text)] if len(text) < 3 and int(text) < len(texts) else []
    found = found or [number for number, choice in enumerate(texts) if choice == text]
    if not found:
        raise RowError(f"the answer '{text[:40]}', which is none of its {len(texts)} choices")
    return found[0]


FORMAT = Format(roles=("question",), structured=("choices", "answer"), optional=("context",), example=_example)
