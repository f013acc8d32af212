"""The rows of a split as questions that a model is asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from malora_cli.data.batch import TrainExample
from malora_cli.data.columns import CLUSTER
from malora_cli.data.splits import Split


@dataclass(frozen=True)
class Question:
    """One row to be answered.

    Args:
        row: Its number in the source, from 0.
        prompt: All that is said before the answer, as text.
        references: Right answers, the one that is trained first.
        facts: What else metrics want of it.
        example: The tokens of prompt and first reference.
        choices: The tokens of each choice, where the task's metric weighs them.
    """

    row: int
    prompt: str
    references: list[str]
    facts: Mapping[str, Any]
    example: TrainExample
    choices: list[list[int]]

    @property
    def prompt_ids(self) -> list[int]:
        """Tokens of the prompt."""
        return list(self.example.input_ids[: self.example.prompt_tokens])

    @property
    def cluster(self) -> str:
        """What rows that are no independent evidence have in common."""
        return json.dumps(self.facts[CLUSTER]) if CLUSTER in self.facts else self.prompt

    @property
    def bytes(self) -> int:
        """Length of the first reference in UTF-8."""
        return len(self.references[0].encode())


def questions_of(split: Split, limit: int | None) -> list[Question]:
    """At most so many rows of a split, chosen as `Split.sample` does."""
    sample = split.sample(limit)
    rows = split.rows.select(sample).select_columns(["row", "prompt", "references", "facts", "choices"])
    return [
        Question(
            row["row"], row["prompt"], row["references"], json.loads(row["facts"] or "{}"), example, row["choices"]
        )
        for row, example in zip(rows, split.examples(sample, 0), strict=True)
    ]


def shown_solved(questions: Sequence[Question], split: Split) -> list[Question]:
    """The same questions behind solved rows.

    Args:
        questions: As they are asked otherwise.
        split: The rows that they are of, with solved ones in front.
    """
    places = {row: place for place, row in enumerate(split.rows["row"])}
    chosen = [places[question.row] for question in questions]
    choices = split.rows.select(chosen)["choices"]
    return [
        replace(question, example=example, choices=own)
        for question, example, own in zip(questions, split.examples(chosen, 0), choices, strict=True)
    ]


def sample_hash(split: Split, limit: int | None) -> str | None:
    """A hash of which rows of a split are evaluated; None is all of them."""
    sample = split.sample(limit)
    if len(sample) == len(split):
        return None
    return hashlib.sha256(json.dumps(list(sample)).encode()).hexdigest()[:16]
