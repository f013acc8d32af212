"""Scores of answers, each on cases that can be counted by hand."""

from __future__ import annotations

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from malora_cli.evals.metrics import METRICS


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("The cat, sat!", "the cat sat", 1.0),
        ("a dog ran", "the cat sat", 0.0),
        ("", "the cat sat", 0.0),
        ("the cat", "the cat sat on", 2 * 1.0 * 0.5 / 1.5),
        ("sat the cat", "the cat sat", 2 / 3),  # "the cat" is the longest that stands in both in order
        ("Le café est fermé.", "le café est ouvert", 3 / 4),
        ("кошка села", "Кошка села!", 1.0),
        ("हिन्दी में", "हिन्दी में", 1.0),
        ("हिन्दी", "हिन्दू", 0.0),  # marks are part of the word
        ("القطة جلست", "القطة نامت", 1 / 2),
        ("猫坐在垫子上", "猫坐在垫子上。", 1.0),
        ("猫坐", "猫睡", 1 / 2),
        ("ネコが", "ネコは", 2 / 3),
        ("가 나", "가 다", 1 / 2),  # Korean has spaces
        ("แมวนั่ง", "แมวนั่ง", 1.0),
        ("แมว", "แมง", 2 / 3),
        ("第3章", "第4章", 2 / 3),
        ("ＡＢ １２", "ab 12", 1.0),
        ("cafe\u0301", "café", 1.0),
    ],
)
def test_rouge_l(prediction: str, reference: str, score: float) -> None:
    assert METRICS["rouge-l"]().scores([prediction], [[reference]]) == pytest.approx([score])


def test_rouge_l_of_ascii_is_that_of_the_library() -> None:
    draw = random.Random(0)
    characters = [chr(code) for code in range(128)] + list("aabbccdd   ..__--''\n")
    metric, library = METRICS["rouge-l"](), RougeScorer(["rougeL"])
    for _ in range(500):
        one, other = ("".join(draw.choices(characters, k=draw.randrange(60))) for _ in range(2))
        other = draw.choice([other, one[: len(one) // 2] + other])
        assert metric.score(one, other) == library.score(other, one)["rougeL"].fmeasure


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("the cat sat", "A cat sat.", 1.0),  # articles, case and punctuation do not count
        ("cat dog", "dog cat", 1.0),
        ("cat", "cat sat", 2 / 3),
        ("cat cat", "cat", 2 / 3),  # a word counts as often as it stands in both
        ("the U.S.", "US", 1.0),
        ("the", "a", 1.0),
        ("", "cat", 0.0),
        ("the", "cat", 0.0),
        ("北京市", "北京", 4 / 5),
        ("«Café»", "café", 1.0),
        ("Москва́", "москва́", 1.0),
    ],
)
def test_token_f1(prediction: str, reference: str, score: float) -> None:
    assert METRICS["token-f1"]().scores([prediction], [[reference]]) == pytest.approx([score])


@pytest.mark.parametrize(
    ("ignore", "same", "different"),
    [
        ((), ["5", " 5\n"], ["5.", "5 5", ""]),
        ((), ["café", "cafe\u0301"], ["cafe", "Café"]),
        (("case",), ["Paris", "PARIS", " paris"], ["Paris.", "The Paris"]),
        (("case",), ["Straße", "STRASSE"], ["Strase"]),
        (("punctuation",), ["U.S.", "US", "«US»", "US。"], ["us", "U S"]),
        (("articles",), ["The cat", "cat", "a cat", "cat  the"], ["theatre cat", "Cat"]),
        (("case", "punctuation", "articles"), ["The cat, sat!", "cat sat", "A CAT sat"], ["cats sat", "catsat"]),
    ],
)
def test_exact_match_ignores_what_it_is_told_to(ignore: tuple[str, ...], same: list[str], different: list[str]) -> None:
    metric = METRICS["exact-match"](ignore=ignore)
    assert metric.scores(same, [[same[0]]] * len(same)) == [1.0] * len(same)
    assert metric.scores(different, [[same[0]]] * len(different)) == [0.0] * len(different)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [("exact-match", "no", "yes"), ("last-number", "3", "7"), ("choice", "(C)", "B"), ("token-f1", "no", "yes"),
     ("rouge-l", "no", "yes")],
)  # fmt: skip
def test_of_several_references_the_best_counts(name: str, wrong: str, right: str) -> None:
    metric = METRICS[name]()
    assert metric.scores([right, wrong, right], [[wrong, right], [right, right], [right]]) == [1.0, 0.0, 1.0]


def test_every_metric_is_one_of_its_name() -> None:
    for name, metric in METRICS.items():
        assert metric.model_fields["name"].default == name
        if not any(field.is_required() for field in metric.model_fields.values()):
            assert str(metric()) == name
    assert str(METRICS["exact-match"](ignore=("case", "articles"))) == "exact-match (ignore: case and articles)"
