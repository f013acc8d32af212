"""Scores of answers, each on cases that can be counted by hand."""

from __future__ import annotations

import pytest

from malora_cli.evals.metrics import METRICS


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("The answer is: 18", "9 * 2 = 18\n#### 18", 1),
        ("18 apples, then 17", "#### 18", 0),
        ("$1,234.50", "#### 1234.5", 1),
        ("-3", "#### 3", 0),
        ("7.0", "7", 1),
        ("none", "#### 7", 0),
        ("none", "none", 0),
        ("", "#### 7", 0),
    ],
)
def test_last_number(prediction: str, reference: str, score: float) -> None:
    assert METRICS["last-number"].scores([prediction], [reference]) == [score]


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("The cat, sat!", "the cat sat", 1.0),
        ("a dog ran", "the cat sat", 0.0),
        ("", "the cat sat", 0.0),
        ("the cat", "the cat sat on", 2 * 1.0 * 0.5 / 1.5),
        ("sat the cat", "the cat sat", 2 / 3),  # "the cat" is the longest that stands in both in order
    ],
)
def test_rouge_l(prediction: str, reference: str, score: float) -> None:
    assert METRICS["rouge-l"].scores([prediction], [reference]) == pytest.approx([score])
