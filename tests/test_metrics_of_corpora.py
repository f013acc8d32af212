"""Scores of all answers of a task together, against the libraries that define them and by hand."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import accuracy_score, f1_score

from malora_cli.errors import DataError
from malora_cli.evals.metrics import METRICS
from malora_cli.evals.metrics._base import Answer, Metric
from malora_cli.results.statistics import compare

#: The example that sacrebleu's README has: three answers, two references each, one of them missing.
ANSWERS = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]


def answers(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[Answer]:
    return [Answer(text, rights) for text, rights in zip(texts, references, strict=True)]


def value(metric: Metric, rows: Sequence[Answer]) -> float:
    return metric.measured(metric.marks(rows)).score


def drawn(draw: random.Random) -> tuple[list[str], list[list[str]]]:
    """Answers and one to three references each, of few words, so that many n-grams are shared, and some of none."""
    words = ["the", "dog", "Bit", "a", "man,", "(it", "was", "not.", "Ünder", "犬", "3.5", "it's"]

    def text(least: int = 0) -> str:
        return " ".join(draw.choices(words, k=draw.randrange(least, 9)))

    rows = range(draw.randrange(1, 6))
    return [text() for _ in rows], [[text(1) for _ in range(draw.randrange(1, 4))] for _ in rows]


def streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References as sacrebleu takes them: by number, None where a row has fewer."""
    most = max(map(len, references))
    return [[rights[number] if number < len(rights) else None for rights in references] for number in range(most)]


def test_bleu_and_chrf_of_an_example_that_is_published() -> None:
    rows = answers(ANSWERS, REFERENCES)
    assert value(METRICS["bleu"](), rows) == pytest.approx(0.4853, abs=5e-5)
    assert value(METRICS["chrf"](), rows) == pytest.approx(0.5973, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "options", "library", "sentence"),
    [
        ("bleu", {}, BLEU(), BLEU(effective_order=True)),
        ("bleu", {"lowercase": True, "tokenize": "char"}, BLEU(lowercase=True, tokenize="char"), None),
        ("chrf", {}, CHRF(), CHRF()),
        ("chrf", {"word_order": 2, "lowercase": True}, CHRF(word_order=2, lowercase=True), None),
    ],
)
def test_bleu_and_chrf_are_sacrebleus(name: str, options: dict[str, Any], library: Any, sentence: Any) -> None:
    metric, draw = METRICS[name](**options), random.Random(0)
    seen = set()
    for _ in range(100):
        texts, references = drawn(draw)
        rows = answers(texts, references)
        expected = library.corpus_score(texts, streams(references)).score / 100
        assert value(metric, rows) == pytest.approx(expected, rel=1e-12, abs=1e-15)
        seen.add(0 if expected < 1e-9 else 1 if expected > 1 - 1e-9 else 0.5)
        if sentence is not None:
            own = [sentence.sentence_score(*row).score / 100 for row in zip(texts, references, strict=True)]
            assert [mark.score for mark in metric.marks(rows)] == pytest.approx(own, rel=1e-12, abs=1e-15)
    assert {0, 0.5} <= seen


@pytest.mark.parametrize("name", ["bleu", "chrf", "macro-f1", "slot-f1"])
def test_a_score_of_many_draws_at_once_is_that_of_each(name: str) -> None:
    draw, metric = random.Random(1), METRICS[name]()
    rows = [row for _ in range(9) for row in answers(*drawn(draw))]
    counts = np.array([mark.counts for mark in metric.marks(rows)])
    draws = np.random.default_rng(0).integers(0, len(rows), (2, 5, len(rows)))
    together = metric.value(counts[draws].sum(axis=2))
    assert together.shape == (2, 5)
    each = [[float(metric.value(counts[rows].sum(axis=0))) for rows in lot] for lot in draws]
    assert together.tolist() == each
    assert np.isfinite(together).all()
    assert ((together >= 0) & (together <= 1)).all()


@pytest.mark.parametrize("name", ["bleu", "chrf", "slot-f1", "json-f1", "label", "macro-f1"])
def test_a_right_answer_is_worth_one_and_an_empty_one_nothing(name: str) -> None:
    right = {"slot-f1": "Add; a=b", "json-f1": '{"a": [1, "b"]}'}.get(name, "the dog bit the man")
    metric = METRICS[name]()
    full, empty = metric.marks(answers([right, ""], [["other; x=y", right], [right]]))
    assert (full.score, empty.score) == (pytest.approx(1), 0)
    assert value(metric, answers([right], [[right]])) == pytest.approx(1)


def test_rouge_of_an_example_that_is_published_is_the_librarys() -> None:
    quick, jumps = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    for kind in ("rouge-1", "rouge-2", "rouge-l"):
        counted = "rougeL" if kind == "rouge-l" else kind.replace("-", "")
        library = RougeScorer([counted]).score_multi([quick, "no word"], jumps)[counted].fmeasure
        assert METRICS[kind]().scores([jumps], [["no word", quick]]) == [library]
    assert METRICS["rouge-1"]().scores([jumps], [[quick]]) == [pytest.approx(2 * 0.75 * 6 / 9 / (0.75 + 6 / 9))]


def test_a_short_answer_wins_its_row_though_it_has_no_4_grams() -> None:
    metric, rights = METRICS["bleu"](), [["a dog"], ["a cat sat on a mat"]]
    before, after = (
        metric.measured(metric.marks(answers(texts, rights)))
        for texts in (["no", "a cat sat on a mat"], ["a dog", "a cat sat on a mat"])
    )
    found = compare(before, after)
    assert (found.wins, found.ties, found.losses) == (1, 1, 0)


# ---------------------------------------------------------------- labels


def test_macro_f1_of_an_example_that_is_published() -> None:
    rows = answers(list("021001"), [[label] for label in "012012"])
    assert value(METRICS["macro-f1"](), rows) == pytest.approx(0.26666666666666666)


def test_labels_are_scored_as_scikit_learn_scores_them() -> None:
    draw, labels = random.Random(2), ["a", "b b", "C", "d"]
    for _ in range(100):
        truth = draw.choices(labels[: draw.randrange(1, 5)], k=draw.randrange(1, 12))
        given = draw.choices([*labels, "none of these"], k=len(truth))
        rows = answers(given, [[label] for label in truth])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            f1 = f1_score(truth, given, labels=sorted(set(truth)), average="macro")
        assert value(METRICS["macro-f1"](), rows) == pytest.approx(f1, abs=1e-12)
        assert value(METRICS["label"](), rows) == pytest.approx(accuracy_score(truth, given))
        unread = [mark.unread for mark in METRICS["label"]().marks(rows)]
        assert unread == [label not in truth for label in given]
        assert unread == [mark.unread for mark in METRICS["macro-f1"]().marks(rows)]


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("card arrival", True), (" Card  arrival\n", True), ("**card arrival**.", True), ("'CARD ARRIVAL'", True),
        ("card arrival\n\nQuery: where is it?", True), ("card", False), ("", False), ("it is card arrival", False),
        ("c++", True), ("C++.", True), ("C#", True), ("C#.", True), ("C", False),
    ],
)  # fmt: skip
def test_what_is_read_as_a_label(answer: str, read: bool) -> None:
    marks = METRICS["label"]().marks(answers([answer] * 3, [["card arrival"], ["C++"], ["c#"]]))
    assert [mark.unread for mark in marks] == [not read] * 3
    assert sum(mark.score for mark in marks) == read


def test_of_several_right_labels_any_is_right() -> None:
    rows = answers(["b", "a", "c"], [["a", "b"], ["a"], ["a", "b"]])
    assert [mark.score for mark in METRICS["label"]().marks(rows)] == [1, 1, 0]
    assert value(METRICS["macro-f1"](), rows) == pytest.approx((2 / 3 + 1) / 2)  # a: 1 of 2; b: 1 of 1
    assert not METRICS["macro-f1"]().marks(answers(["c"], [["c"]]))[0].unread


def test_free_text_is_not_taken_for_labels() -> None:
    with pytest.raises(DataError, match="macro-f1 of 2,001 labels, where 2,000 are the most"):
        METRICS["macro-f1"]().marks(answers([""] * 2001, [[f"text {number}"] for number in range(2001)]))


# ---------------------------------------------------------------- slots and JSON


@pytest.mark.parametrize(
    ("answer", "options", "counts", "unread"),
    [
        ("AddToPlaylist; music_item=track; playlist=X", {}, (2, 0, 0), False),
        ("addtoplaylist;music_item = Track ;playlist=x;", {}, (2, 0, 0), False),
        ("playlist=X; music_item=track", {}, (2, 0, 0), False),
        ("AddToPlaylist; music_item=track; playlist=X\n\nRequest: play", {}, (2, 0, 0), False),
        ("AddToPlaylist; music_item=track; playlist=Y; artist=Z", {}, (1, 2, 1), False),
        ("AddToPlaylist; music_item=track; music_item=track", {}, (1, 1, 1), False),
        ("AddToPlaylist; music_item=track; playlist", {}, (1, 1, 1), False),
        ("AddToPlaylist", {}, (0, 0, 2), False),
        ("PlayMusic; music_item=track; playlist=X", {"intent": True}, (2, 1, 1), False),
        ("AddToPlaylist; playlist=X", {"intent": True}, (2, 0, 1), False),
        ("I would add the track.", {}, (0, 0, 2), True),
        ("", {}, (0, 0, 2), True),
    ],
)
def test_slots(answer: str, options: dict[str, Any], counts: tuple[int, ...], unread: bool) -> None:
    reference = "AddToPlaylist; music_item=track; playlist=X"
    [mark] = METRICS["slot-f1"](**options).marks([Answer(answer, [reference])])
    assert (mark.counts, mark.unread) == (counts, unread)
    assert mark.score == 2 * counts[0] / (2 * counts[0] + counts[1] + counts[2])


def test_slots_are_counted_over_all_rows() -> None:
    rows = answers(["A; a=1; b=2; c=3", "B; a=0", "C"], [["A; a=1; b=2; c=3"], ["B; a=1"], ["C"]])
    assert value(METRICS["slot-f1"](), rows) == pytest.approx(3 / 4)
    assert [mark.score for mark in METRICS["slot-f1"]().marks(rows)] == [1, 0, 1]
    lines = METRICS["slot-f1"](separator="\n", equals=":")
    assert value(lines, answers(["Add\nx: 1\ny: 2"], [["Add\ny: 2\nx: 1"]])) == 1


def test_references_without_slots_are_told_and_score_nothing() -> None:
    metric = METRICS["slot-f1"](separator="|", equals=":")
    assert not metric.reads("AddToPlaylist; music_item=track")
    assert value(metric, answers(["anything at all"], [["AddToPlaylist; music_item=track"]])) == 0
    assert metric.reads("GetWeather")
    assert metric.reads("city: Rome")


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"a": 1, "b": [2, {"c": "x"}]}', 1), ('{"b":[2.0,{"c":"x"}],"a":1.0}', 1),
        ('```json\n{"a": 1, "b": [2, {"c": "x"}]}\n```', 1),
        ('Here it is:\n```\n{"a": 1, "b": [2, {"c": "x"}]}\n```\nAnything else?', 1),
        ('{"a": 1}', 2 / 4), ('{"a": "1", "b": [2, {"c": "x"}]}', 4 / 6), ('{"a": true, "b": [2, {"c": "x"}]}', 4 / 6),
        ('{"a": 1, "b": [{"c": "x"}, 2]}', 2 / 6), ("{}", 0), ("[]", 0), ("1", 0), ('{"a": null}', 0),
    ],
)  # fmt: skip
def test_json_f1(answer: str, score: float) -> None:
    reference = '{"a": 1, "b": [2, {"c": "x"}]}'
    [mark] = METRICS["json-f1"]().marks([Answer(answer, [reference])])
    assert (mark.score, mark.unread) == (pytest.approx(score), False)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "a",
        "{",
        "{'a': 1}",
        '{"a": NaN}',
        '{"a": 1}}',
        "[" * 100_000,
        "9" * 5_000,
        "```\n{\n```",
        '```json\n{"a": 1}',
    ],
)
def test_what_is_not_valid_json_is_unread(answer: str) -> None:
    [mark] = METRICS["json-f1"]().marks([Answer(answer, [answer, '{"a": 1}'])])
    assert (mark.score, mark.unread) == (0, True)
    assert not METRICS["json-f1"]().reads(answer)


def test_the_order_of_lists_may_not_count() -> None:
    metric = METRICS["json-f1"](ordered=False)
    assert metric.scores(["[1, 2, 2]"], [["[2, 1, 2]"]]) == [1]
    assert metric.scores(["[1, 2, 2]"], [["[2, 1, 1]"]]) == [pytest.approx(2 / 3)]


# ---------------------------------------------------------------- likelihood


def test_likelihood_is_two_to_the_bits_a_byte() -> None:
    metric = METRICS["likelihood"]()
    rows = [Answer("", ["héé"], reference_nats=5 * math.log(2)), Answer("", ["abc"], reference_nats=3 * math.log(4))]
    assert metric.kind == "likelihood"
    assert [mark.score for mark in metric.marks(rows)] == pytest.approx([1 / 2, 1 / 4])
    assert value(metric, rows) == pytest.approx(2 ** -((5 + 6) / 8))
    assert not any(mark.unread for mark in metric.marks(rows))
    with pytest.raises(DataError, match="row 1: the score is not a finite number"):
        value(metric, [Answer("", ["abc"])])


def test_a_mean_of_rows_is_known_as_one() -> None:
    rows = answers(["a", "b"], [["a"], ["a"]])
    assert METRICS["label"]().measured(METRICS["label"]().marks(rows)).is_binary
    assert not METRICS["macro-f1"]().measured(METRICS["macro-f1"]().marks(rows)).is_binary
