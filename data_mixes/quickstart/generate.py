"""Regenerate the quickstart mixture's JSONL files, bit for bit.

Not needed to train or to test: the rows are frozen beside this script. It needs reasoning-gym 0.1.25 (Apache-2.0,
https://github.com/open-thought/reasoning-gym), whose generators draw the items and the answers; only the questions'
wording is ours, cut down to a few tokens. None of these generators depends on PYTHONHASHSEED or on today's date.

    pip install reasoning-gym==0.1.25
    python data_mixes/quickstart/generate.py [FOLDER]
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Entry = Mapping[str, Any]
Row = tuple[str, str]  # question, answer

TRAIN_ROWS, TEST_ROWS = 600, 100

# reasoning-gym seeds item i with seed + i, so tasks whose seeds lie close share draws; this gap keeps them apart.
SEED_GAP = 1_000_000
MAX_DRAWS = 100_000

PLAIN_WORD = re.compile(r"[a-z]{3,6}")


def chain_sum(entry: Entry) -> Row | None:
    """``47 - 12 =`` -> ``35``; without carrying or borrowing: a small model learns that in a few hundred rows."""
    expression = entry["metadata"]["expression"]
    left, sign, right = expression.split()
    for upper, lower in zip(left, right, strict=True):  # both terms have the same number of digits
        result = int(upper) + int(lower) if sign == "+" else int(upper) - int(lower)
        if not 0 <= result <= 9:
            return None
    return f"{expression} =", entry["answer"]


def sorted_numbers(direction: str) -> Callable[[Entry], Row | None]:
    """``ascending: 52 14 87`` -> ``14 52 87``, or the same list descending."""

    def row(entry: Entry) -> Row | None:
        meta = entry["metadata"]
        numbers = [str(int(float(number))) for number in meta["original_numbers"]]
        if meta["direction"] != direction or len(set(numbers)) < len(numbers):
            return None
        return f"{direction}: {' '.join(numbers)}", " ".join(
            str(int(float(number))) for number in meta["sorted_numbers"]
        )

    return row


def word_sequence_reversal(entry: Entry) -> Row | None:
    """``reverse: moon, cat, tree`` -> ``tree, cat, moon``."""
    words = entry["metadata"]["words"]
    return (f"reverse: {', '.join(words)}", entry["answer"]) if _plain_and_distinct(words) else None


def word_sorting(entry: Entry) -> Row | None:
    """``sort: moon, cat, tree`` -> ``cat, moon, tree``, with initials that differ; descending items are left out."""
    meta = entry["metadata"]
    words = meta["original_words"]
    initials = {word[0] for word in words}
    if meta["direction"] != "ascending" or not _plain_and_distinct(words) or len(initials) < len(words):
        return None
    return f"sort: {', '.join(words)}", entry["answer"]


def rotated_grid(side: str, quarter_turns: int) -> Callable[[Entry], Row | None]:
    """``rotate right: 28 / 53`` -> ``52 / 38``; to the left is three quarter turns clockwise."""

    def row(entry: Entry) -> Row | None:
        meta = entry["metadata"]
        if meta["num_rotations"] != quarter_turns:
            return None
        return f"rotate {side}: {_grid(meta['matrix'])}", _grid(meta["solution"])

    return row


def needle_haystack(entry: Entry) -> Row | None:
    """``Denon desires pigs. Emil bears boats. Who bears boats?`` -> ``Emil``."""
    question = entry["question"].replace("\n", "").removesuffix(" Reply only with a name.")
    return (question, entry["answer"]) if len(question) <= 90 else None


def _plain_and_distinct(words: list[str]) -> bool:
    return len(set(words)) == len(words) and all(PLAIN_WORD.fullmatch(word) for word in words)


def _grid(matrix: list[list[int]]) -> str:
    return " / ".join("".join(map(str, line)) for line in matrix)


@dataclass(frozen=True)
class Task:
    """One task: a reasoning-gym generator, its settings, and the wording that makes a row of an item (or drops it)."""

    name: str
    generator: str
    settings: Mapping[str, Any]
    row: Callable[[Entry], Row | None]


NUMBERS = {"min_numbers": 3, "max_numbers": 4, "min_decimals": 0, "max_decimals": 0, "min_value": 10, "max_value": 99}
GRID = {"min_n": 2, "max_n": 2, "min_rotations": 0, "max_rotations": 3}

TASKS = (
    Task(
        "chain_sum",
        "chain_sum",
        {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
        chain_sum,
    ),
    Task("numbers_ascending", "number_sorting", NUMBERS, sorted_numbers("ascending")),
    Task("numbers_descending", "number_sorting", NUMBERS, sorted_numbers("descending")),
    Task("words_reversed", "word_sequence_reversal", {"min_words": 3, "max_words": 4}, word_sequence_reversal),
    Task("words_sorted", "word_sorting", {"min_words": 3, "max_words": 3, "max_word_length": 6}, word_sorting),
    Task("rotate_right", "rotate_matrix", GRID, rotated_grid("right", 1)),
    Task("rotate_left", "rotate_matrix", GRID, rotated_grid("left", 3)),
    Task("who_does", "needle_haystack", {"min_num_statements": 2, "max_num_statements": 3}, needle_haystack),
)


def draw(task: Task, seed: int) -> dict[str, str]:
    """Draw distinct questions with their answers, in the generator's order.

    Raises:
        RuntimeError: The generator's space is too small for the rows wanted.
    """
    import reasoning_gym  # here, so that the tests can read the settings without it

    items = reasoning_gym.create_dataset(task.generator, seed=seed, size=MAX_DRAWS, **task.settings)
    answers: dict[str, str] = {}
    for index in range(MAX_DRAWS):
        row = task.row(items[index])
        if row is not None:
            answers.setdefault(*row)
        if len(answers) == TRAIN_ROWS + TEST_ROWS:
            return answers
    raise RuntimeError(f"{task.name}: only {len(answers)} distinct questions in {MAX_DRAWS} draws")


def split(answers: Mapping[str, str]) -> dict[str, list[str]]:
    """Split by the question's hash: disjoint, free of the drawing order, and any head of a file is a fair sample."""
    questions = sorted(answers, key=lambda question: hashlib.sha256(question.encode()).hexdigest())
    return {"test": questions[:TEST_ROWS], "train": questions[TEST_ROWS:]}


def main(folder: Path) -> None:
    """Write ``<task>.train.jsonl`` and ``<task>.test.jsonl`` of every task."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, task in enumerate(TASKS):
        answers = draw(task, seed=number * SEED_GAP)
        for name, questions in split(answers).items():
            lines = [
                json.dumps({"question": question, "answer": answers[question]}, ensure_ascii=False) + "\n"
                for question in questions
            ]
            (folder / f"{task.name}.{name}.jsonl").write_bytes("".join(lines).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
