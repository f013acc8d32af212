"""The frozen rows of the quickstart mixture: well-formed, disjoint, right, and the output of the script beside them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

MIXES = Path(__file__).parents[1] / "data_mixes"
MIX: dict[str, Any] = yaml.safe_load((MIXES / "quickstart.yaml").read_text(encoding="utf-8"))
TASKS: dict[str, dict[str, Any]] = MIX["tasks"]
SPLIT_ROWS = {"train": 600, "test": 100}
GENERATOR_VERSION = "0.1.25"


def read(task: str, split: str) -> list[dict[str, str]]:
    text = (MIXES / TASKS[task][split]).read_bytes().decode("utf-8")
    assert text.endswith("\n")
    assert "\r" not in text
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def questions(split: str) -> list[str]:
    return [row["question"] for task in TASKS for row in read(task, split)]


# Each rule is written from the question's words alone, so a slip in a generator or in our rewording of it shows.


def chain_sum(question: str) -> str:
    left, sign, right = re.fullmatch(r"(\d+) ([+-]) (\d+) =", question).groups()  # type: ignore[union-attr]
    return str(int(left) + int(right) if sign == "+" else int(left) - int(right))


def numbers(question: str) -> str:
    direction, values = question.split(": ")
    return " ".join(sorted(values.split(), key=int, reverse={"ascending": False, "descending": True}[direction]))


def words(question: str) -> str:
    rule, values = question.split(": ")
    listed = values.split(", ")
    return ", ".join({"reverse": listed[::-1], "sort": sorted(listed)}[rule])


def rotated(question: str) -> str:
    side, a, b, c, d = re.fullmatch(r"rotate (\w+): (\d)(\d) / (\d)(\d)", question).groups()  # type: ignore[union-attr]
    return {"right": f"{c}{a} / {d}{b}", "left": f"{b}{d} / {a}{c}"}[side]


def who_does(question: str) -> str:
    *statements, asked = re.split(r"(?<=\.) ", question)
    does = asked.removeprefix("Who ").removesuffix("?")
    (name,) = [text.removesuffix(f" {does}.") for text in statements if text.endswith(f" {does}.")]
    return name


RULES: dict[str, Callable[[str], str]] = {
    "chain_sum": chain_sum,
    "numbers_ascending": numbers,
    "numbers_descending": numbers,
    "words_reversed": words,
    "words_sorted": words,
    "rotate_right": rotated,
    "rotate_left": rotated,
    "who_does": who_does,
}


def test_mix_is_small_wide_and_names_every_file() -> None:
    named = {MIXES / TASKS[task][split] for task in TASKS for split in SPLIT_ROWS}

    assert 6 <= len(TASKS) <= 8
    assert len({task["domain"] for task in TASKS.values()}) >= 4
    assert named == set((MIXES / "quickstart").glob("*.jsonl"))
    assert sum(path.stat().st_size for path in named) < 3_000_000


@pytest.mark.parametrize("split", SPLIT_ROWS)
@pytest.mark.parametrize("task", TASKS)
def test_rows_are_well_formed(task: str, split: str) -> None:
    rows = read(task, split)

    assert len(rows) == SPLIT_ROWS[split]
    for row in rows:
        assert list(row) == ["question", "answer"]
        assert all(isinstance(text, str) and text and text == text.strip() for text in row.values())
    digests = [hashlib.sha256(row["question"].encode()).hexdigest() for row in rows]
    assert digests == sorted(digests), "rows are ordered by their question's hash: the head of a file is a fair sample"


@pytest.mark.parametrize("task", TASKS)
def test_answers_follow_the_rule(task: str) -> None:
    for split in SPLIT_ROWS:
        for row in read(task, split):
            assert RULES[task](row["question"]) == row["answer"], row


def test_no_question_occurs_twice_in_the_whole_mix() -> None:
    twice = [question for question, count in Counter(questions("train") + questions("test")).items() if count > 1]

    assert twice == []


def test_readme_shows_rows_that_exist() -> None:
    shown = re.findall(r"^\| (\w+) \| \w+ \| `(.+?)` \| `(.+?)` \|", (MIXES / "quickstart/README.md").read_text(), re.M)

    assert [task for task, _, _ in shown] == list(TASKS)
    for task, question, answer in shown:
        assert {"question": question, "answer": answer} in read(task, "test")


@pytest.mark.parametrize("task", TASKS)
def test_no_single_answer_gives_a_high_score(task: str) -> None:
    """A constant answer must not look like learning."""
    rows = read(task, "test")
    (_, count), *_ = Counter(row["answer"] for row in rows).most_common(1)

    assert count / len(rows) <= 0.1


@pytest.mark.parametrize("hash_seed", ["1", "77"])
def test_script_regenerates_the_files_bit_for_bit(hash_seed: str, tmp_path: Path) -> None:
    try:
        installed = importlib.metadata.version("reasoning-gym")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs reasoning-gym {GENERATOR_VERSION}")
    if installed != GENERATOR_VERSION:
        pytest.skip(f"needs reasoning-gym {GENERATOR_VERSION}, found {installed}")

    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    script = MIXES / "quickstart" / "generate.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, env=environment)

    frozen = {path.name: path.read_bytes() for path in (MIXES / "quickstart").glob("*.jsonl")}
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == frozen
