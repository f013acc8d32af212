"""A question with choices, answered by a letter.

A row such as ``{"question": "What melts ice?", "choices": ["cold", "heat"], "answer": 1}`` becomes the user's turn::

    What melts ice?

    A. cold
    B. heat

    Answer with the letter alone.

and the answer ``"B"``. ``choices`` is a list of texts, several columns (``choices: [opa, opb]``), a mapping of labels
to texts (``{"A": "cold", "B": "heat"}``), or ARC's texts and labels (``{"text": [...], "label": [...]}``, also one
mapping a choice). ``answer`` is a label (without labels, a letter), also as "(B)" or "B. heat", a position from 0, or
the text of a choice. Where the data count from 1: ``answer: "{{ answer | int - 1 }}"``. Where the right choice always
stands first, the choices may be sorted: ``choices: "{{ [right, wrong] | sort }}"``. A column for the role ``context``
stands above the question; the role ``instruction`` stands in place of the last line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from malora_cli.data.class_name import ClassName
from malora_cli.data.formats._base import Example, Format, RowError, as_text, paragraphs

_FROM_0 = "the number of its choices as the answer, and choices are counted from 0"
_BOTH = "a number as the answer that is the position of a choice, as which it is taken, and the text of another"
_TEXT = "a number as the answer that is not a position, so it is taken as the text of a choice"
_FROM_TEXT = """`answer: "{{ (CHOICES | map('string') | list).index(COLUMN | string) }}"`"""
_FROM_1 = """`answer: "{{ COLUMN | int - 1 }}"`"""

#: A letter as people mark it, and the text behind it: "(B)", "B." or "b) heat".
_MARKED = re.compile(r"\(?([A-Za-z])[).:]\s*(.*)", re.DOTALL)


def _example(row: Mapping[str, Any]) -> Example:
    texts, right, remarks = chosen(row)
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, texts, strict=False))
    instruction = "Answer with the letter alone." if row["instruction"] is None else row["instruction"]
    prompt = paragraphs((row["context"], row["question"], listed, instruction))
    letters = list(ascii_uppercase[: len(texts)])
    return replace(Example.single(prompt, letters[right]), remarks=remarks, facts={"choices": letters})


def chosen(row: Mapping[str, Any]) -> tuple[list[str], int, tuple[str, ...]]:
    """The choices of a row, which of them is right, and what is to be known of that.

    Raises:
        RowError: There are none, or none is right.
    """
    texts, labels = _choices(row["choices"])
    return texts, *_position(row["answer"], texts, labels)


def _choices(given: Any) -> tuple[list[str], list[str]]:
    """The texts of the choices and what the data call them."""
    if isinstance(given, str):
        way = " | fromjson" if given.lstrip().startswith(("[", "{")) else ".split(';')"
        raise RowError(f"""choices that are one text; part it, as in `choices: "{{{{ COLUMN{way} }}}}"`""")
    choices, labels = _texts_and_labels(given)
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(ascii_uppercase):
        raise RowError("no list of 2 to 26 choices")
    if not isinstance(labels, list) or len(labels) != len(choices):
        raise RowError("not as many labels as choices")
    while not _said(choices[-1]) and len(choices) > 2:  # a column or field that only rows of more choices fill
        choices = choices[:-1]
    if not all(_said(choice) for choice in choices):
        raise RowError("a choice without text")
    return [str(as_text(choice)) for choice in choices], [_plain(label) for label in labels[: len(choices)]]


def _texts_and_labels(given: Any) -> tuple[Any, Any]:
    labels: Any = None
    if isinstance(given, list) and given and all(isinstance(choice, Mapping) for choice in given):
        labels = [choice.get("label") for choice in given]
        given = [choice.get("text") for choice in given]
    elif isinstance(given, Mapping) and "text" in given:
        given, labels = given["text"], given.get("label")
    elif isinstance(given, Mapping):
        given, labels = list(given.values()), list(given)
    if labels is None and isinstance(given, list):
        labels = list(ascii_uppercase[: len(given)])
    return given, labels


def _said(choice: Any) -> bool:
    return bool((as_text(choice) or "").strip())


def _plain(value: Any) -> str:
    """A label or an answer, whole numbers without a fraction."""
    return re.sub(r"^(\d+)\.0*$", r"\1", str(value).strip(), flags=re.ASCII)


def _position(answer: Any, texts: Sequence[str], labels: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """Which choice is right, and what is to be known of that."""
    text = _plain(answer)
    if text in labels:
        return labels.index(text), ()
    same = next((number for number, choice in enumerate(texts) if choice.strip() == text), None)
    number = int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else None
    if isinstance(answer, ClassName) and (number is not None or same is None):
        number = answer.number
    if number is not None and number < len(texts):
        return number, () if same in (None, number) else (_BOTH,)
    if same is not None:
        return same, () if number is None else (_TEXT,)
    if text.upper() in labels:
        return labels.index(text.upper()), ()
    marked = _MARKED.fullmatch(text)
    if marked and marked[1].upper() in labels:
        named = labels.index(marked[1].upper())
        if not marked[2] or marked[2] == texts[named].strip():
            return named, ()
    if number == len(texts):
        raise RowError(f"{_FROM_0} (if from 1, {_FROM_1})")
    raise RowError(f"the answer '{text[:40]}', which is not one of its {len(texts)} choices")


def _wrong(answers: Collection[str], notes: Collection[str]) -> tuple[str, str] | None:
    if any(note.startswith(_FROM_0) for note in notes) and ascii_uppercase[0] not in answers:
        return "answers reach the number of choices and are never 0, so they are counted from 1", f"Write {_FROM_1}."
    if _BOTH in notes and _TEXT in notes:
        what = "answers are numbers, which are positions of choices in some rows and texts of choices in others"
        return what, f"Where they are texts, write {_FROM_TEXT}."
    return None


FORMAT = Format(
    roles=("question",),
    structured=("choices", "answer"),
    optional=("context", "instruction"),
    mapped=("instruction",),
    example=_example,
    wrong=_wrong,
    facts=("choices",),
)
