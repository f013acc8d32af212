"""Accuracy of the most likely choice, on nats that can be compared by hand."""

from __future__ import annotations

import pytest

from malora_cli.evals.metrics import METRICS
from malora_cli.evals.metrics._base import Answer
from malora_cli.registry import did_you_mean

NAMES = ("accuracy", "accuracy-norm", "accuracy-bytes", "accuracy-pmi")


def answer(nats: list[float], *choices: str, right: str, prior: list[float] | None = None) -> Answer:
    return Answer("", [right], facts={"choices": list(choices)}, nats=nats, prior_nats=prior or [0.0] * len(nats))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("right", "score"), [("a", 0.0), ("b", 1.0), (" b\n", 1.0), ("c", 0.0)])
def test_the_choice_of_the_fewest_nats_is_taken(name: str, right: str, score: float) -> None:
    [mark] = METRICS[name]().marks([answer([2.0, 1.0, 1.5], "a", "b", "c", right=right)])
    assert (mark.score, mark.counts, mark.unread) == (score, (score, 1.0), False)


@pytest.mark.parametrize("name", NAMES)
def test_of_equal_ones_the_first_is_taken(name: str) -> None:
    [mark] = METRICS[name]().marks([answer([1.0, 1.0], "a", "b", right="a")])
    assert mark.score == 1.0


@pytest.mark.parametrize(
    ("nats", "choices", "prior", "chosen"),
    [
        ([2.0, 3.0], ("ab", "abcd"), [0.0, 0.0], {"accuracy": 0, "accuracy-norm": 1, "accuracy-bytes": 1}),
        ([2.0, 2.0], ("ab", "éa"), [0.0, 0.0], {"accuracy": 0, "accuracy-norm": 0, "accuracy-bytes": 1}),
        ([2.0, 3.0], ("ab", "ab"), [1.0, 4.0], {"accuracy": 0, "accuracy-norm": 0, "accuracy-pmi": 1}),
    ],
)
def test_each_norm_has_its_own_view(
    nats: list[float], choices: tuple[str, str], prior: list[float], chosen: dict[str, int]
) -> None:
    asked = answer(nats, *choices, right="", prior=prior)
    for name, expected in chosen.items():
        weights = METRICS[name]().weights(asked)
        assert min((0, 1), key=weights.__getitem__) == expected, name


def test_several_may_be_right() -> None:
    asked = Answer("", ["x", "b"], facts={"choices": ["a", "b"]}, nats=[2.0, 1.0])
    assert METRICS["accuracy"]().marks([asked])[0].score == 1.0


@pytest.mark.parametrize(
    ("written", "meant"),
    [("acuracy", "accuracy"), ("accuracy_norm", "accuracy-norm"), ("acc-norm", "accuracy-norm")],
)
def test_they_are_found(written: str, meant: str) -> None:
    assert did_you_mean(written, METRICS) == f"did you mean '{meant}'?"


def test_only_one_asks_for_the_choices_without_the_question() -> None:
    assert [name for name in NAMES if METRICS[name].needs_prior] == ["accuracy-pmi"]
    assert all(METRICS[name].kind == "choices" and METRICS[name].needs == ("choices",) for name in NAMES)
