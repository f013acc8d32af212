"""Answers that are labels, such as intents: the labels of a task are those of its references."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain

from malora_cli.evals.metrics._base import Answer

#: What may stand around a label; not what may be part of one, as in C++ and C#.
_AROUND = " \t.,;:!?\"'`*“”„«»"


@dataclass(frozen=True)
class Labelled:
    """One answer as a label.

    Args:
        right: The right label; of several the one that is given, else the first.
        given: The label that is read; None where it is none of the task's.
    """

    right: str
    given: str | None


def read_labels(answers: Sequence[Answer]) -> tuple[list[str], list[Labelled]]:
    """The labels of a task, in order, and each answer as one of them."""
    rights = [[folded(reference) for reference in answer.references] for answer in answers]
    labels = sorted({*chain.from_iterable(rights)})
    known = frozenset(labels)
    given = [_label(answer.text, known) for answer in answers]
    return labels, [
        Labelled(label if label in right else right[0], label) for label, right in zip(given, rights, strict=True)
    ]


def folded(text: str) -> str:
    """A text without regard to case and white space."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _label(text: str, labels: Collection[str]) -> str | None:
    """The label that a text is, or its first line, marks around it aside."""
    line = next(iter(text.strip().splitlines()), "")
    ways = map(folded, (text, line, line.strip(_AROUND)))
    return next((way for way in ways if way in labels), None)
