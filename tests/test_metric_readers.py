"""What metrics read from answers, whatever these are: nothing fails, and what is written in one of its ways is read."""

from __future__ import annotations

import json
from fractions import Fraction
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from malora_cli.evals.metrics import METRICS
from malora_cli.evals.metrics._base import Answer
from malora_cli.evals.metrics._numbers import number_of

READERS = sorted(
    name
    for name, metric in METRICS.items()
    if metric.kind == "generation" and not metric.needs and not metric.runs_code and name != "evaluate"
)
#: Pieces that readers look for, so that texts of them come near to what is read.
PIECES = ["A", "(B)", "B.", "answer is ", "####", "1,000", "$", "%", "-", "1/2", "\\boxed{", "}", "3.5", "e9", ";", "="]
PIECES += [
    "{",
    '"a"',
    ":",
    "[",
    "]",
    "```json\n",
    "```",
    "\n",
    " ",
    "true",
    "a=1",
    "yes",
    "Yes.",
    "٣",
    "½",
    "犬",
    "\ud800",
]
TEXTS = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=40)
@given(
    rows=st.lists(st.tuples(TEXTS, st.lists(TEXTS.filter(str.strip), min_size=1, max_size=3)), min_size=1, max_size=4)
)
@example(rows=[("I do not know", ["GetWeather"]), ("", ["A; a=1", "B"]), ("B", ["A; a=1", "B"])])
def test_whatever_is_answered_is_scored(name: str, rows: list[tuple[str, list[str]]]) -> None:
    metric = METRICS[name]()
    marks = metric.marks([Answer(text, rights) for text, rights in rows])
    assert all(0 <= mark.score <= 1 for mark in marks)
    assert all(mark.score == 0 for mark in marks if mark.unread)
    assert 0 <= metric.measured(marks).score <= 1
    right = metric.marks([Answer(rights[0], rights) for _, rights in rows])
    assert all(later.score >= mark.score - 1e-12 for mark, later in zip(marks, right, strict=True) if not later.unread)


NUMBER_FRAMES = ["{}", "{}.", "${}", "{}%", "**{}**", "The answer is {}.", "7 - 2 = 5, so it is {}", "5 and 6\n#### {}"]
NUMBER_FRAMES += [
    "#### {}\n\nQuestion: Tom has 5 apples",
    "\\boxed{{{}}} of 5",
    "$\\boxed{{{}}}$",
    "It costs ${}.",
    "\n{}\n",
]


@given(number=st.integers(-(10**12), 10**12), frame=st.sampled_from(NUMBER_FRAMES), parted=st.booleans())
def test_numbers(number: int, frame: str, parted: bool) -> None:
    written = f"{number:,}" if parted else str(number)
    assert number_of((frame if number >= 0 else frame.replace("$", "")).format(written)) == number


@given(
    value=st.decimals(-(10**6), 10**6, places=2), zeros=st.integers(0, 2), frame=st.sampled_from(["{}", "It is {}."])
)
def test_decimals(value: Any, zeros: int, frame: str) -> None:
    assert number_of(frame.format(f"{value}{'0' * zeros}")) == Fraction(value)


@given(over=st.integers(-999, 999), under=st.integers(1, 999))
def test_fractions(over: int, under: int) -> None:
    expected = Fraction(over, under)
    sign = "-" if over < 0 else ""
    assert number_of(f"{over}/{under}") == expected
    assert number_of(f"{sign}\\frac{{{abs(over)}}}{{{under}}}") == expected


def test_the_numbers_of_a_report_on_another_harness_are_equal() -> None:
    # EleutherAI/lm-evaluation-harness#3214: what its filter extracts is compared with its $, comma and final dot.
    metric = METRICS["last-number"]()
    said = ["the total cost of Rory's delivery order is $29.00.", "$29", "29.", "29%", "29.00", "It is $29,000."]
    assert [mark.score for mark in metric.marks([Answer(text, ["#### 29"]) for text in said])] == [1, 1, 1, 1, 1, 0]
    run_on = "so 6 * 3 = 18\n#### 18\n\nQuestion: how many are 20 apples?\nAnswer: 20\n#### 20"
    assert metric.scores([run_on], [["#### 18"]]) == [1]  # the first behind ####, whatever is said after it


LETTER_FRAMES = ["{}", "{}.", "({})", " {}\n", "The answer is {}", "The answer is ({}).", "Answer: {}", "**{}**"]
LETTER_FRAMES += ["\\boxed{{{}}}", "Heat melts ice.\n\n{}", "{}\n\nQuestion: What floats?\nAnswer: ", "答案是{}"]


@given(
    letter=st.sampled_from(ascii_uppercase),
    frame=st.sampled_from(LETTER_FRAMES),
    other=st.sampled_from(ascii_uppercase),
)
def test_letters(letter: str, frame: str, other: str) -> None:
    assert METRICS["choice"]().scores([frame.format(letter)], [[other]]) == [float(letter == other)]


WORDS = st.text(ascii_lowercase + "_", min_size=1, max_size=6)
LABELS = st.lists(st.lists(WORDS, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=6, unique=True)


@given(labels=LABELS, frame=st.sampled_from(["{}", " {}\n", '"{}"', "**{}**.", "{}\n\nQuery: another"]), data=st.data())
def test_labels(labels: list[str], frame: str, data: st.DataObject) -> None:
    way = data.draw(st.sampled_from([str.upper, str.title, str.lower, lambda text: text.replace(" ", "  ")]))
    rows = [Answer(frame.format(way(label)), [label]) for label in labels]
    assert [mark.score for mark in METRICS["label"]().marks(rows)] == [1] * len(labels)
    shifted = [Answer(row.text, [label]) for row, label in zip(rows, labels[1:] + labels[:1], strict=True)]
    marks = METRICS["label"]().marks(shifted)
    assert [mark.score for mark in marks] == [float(len(labels) == 1)] * len(labels)
    assert not any(mark.unread for mark in marks)


@given(slots=st.dictionaries(WORDS, WORDS, min_size=1, max_size=5), data=st.data())
def test_slots(slots: dict[str, str], data: st.DataObject) -> None:
    metric = METRICS["slot-f1"]()
    shuffled = data.draw(st.permutations(list(slots.items())))
    kept = shuffled[: data.draw(st.integers(0, len(slots)))]

    def written(pairs: Any) -> str:
        return "; ".join(["Intent", *(f"{name}={value}" for name, value in pairs)])

    [mark] = metric.marks([Answer(written(kept), [written(slots.items())])])
    assert (mark.counts, mark.unread) == ((len(kept), 0, len(slots) - len(kept)), False)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(value=JSON, other=JSON, ascii_only=st.booleans(), indent=st.sampled_from([None, 2]), fenced=st.booleans())
def test_json(value: Any, other: Any, ascii_only: bool, indent: int | None, fenced: bool) -> None:
    metric = METRICS["json-f1"]()
    plain = json.dumps(value)
    answer = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    if fenced and "```" not in answer:
        answer = f"Here you are:\n```json\n{answer}\n```"
    assert metric.score(answer, plain) == 1
    there, back = metric.score(plain, json.dumps(other)), metric.score(json.dumps(other), plain)
    assert there == back
    assert there < 1 or json.dumps(value) == json.dumps(other) or value == other
