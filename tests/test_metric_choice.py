"""Letters of multiple-choice answers: what is read, and what is not."""

from __future__ import annotations

import pytest

from malora_cli.evals.metrics import METRICS

CHOICE = METRICS["choice"]()


@pytest.mark.parametrize(
    "answer",
    [
        "B", " B\n", "b", "(B)", "[B]", "B.", "B)", "(b)", "b)", "B:", "**B**", "**B.** heat", "`B`", '"B"', "$B$",
        "B. heat", "(B) heat", "B) heat", "b) heat", "B: heat", "B, because it is hot", "B - heat", "B – heat",
        "B heat", "B because it is hot", "B\nheat", "B\n\nQuestion: What floats?\nAnswer: C",
        "The answer is B", "The answer is B.", "The answer is (B).", "The answer is **B**", "The answer is: B",
        "the correct answer is B because ice melts", "Answer: B", "Answer: (B) heat", "ANSWER - B", "Answer = B",
        "The correct option is B.", "The answer is option B", "Correct choice: B", "answer: b",
        "The best answer is (b).",
        "A dog is warm, so the answer is B.", "I think the answer is B", "The answer is not A. The answer is B.",
        "Heat melts ice.\n\nB", "Heat melts ice.\n**B**", "It is heat (B).", "Ice melts in heat, so (B) it is: (B)",
        r"\boxed{B}", r"So $\boxed{\text{B}}$.", r"The answer is $\boxed{(B)}$",
        "Option A is wrong, so the answer is B.", "A is wrong. The answer is B.", "Option: B", "I choose B",
        "B, A is wrong",
        "A. cold\nB. heat\n\nThe answer is B", "A. cold\nB. heat\n\n(B)",
        "B. heat\n\nQuestion: What floats?\nA. x\nB. y",
        "The best option is (B).", "B and not C", "I go with option B.",
        "Ｂ", "答案是B", "答案：B", "选B", "Antwort: B", "La réponse est B.", "Respuesta: B", "Ответ: B",
    ],
)  # fmt: skip
def test_b_is_read(answer: str) -> None:
    assert CHOICE.scores([answer, answer], [["B"], ["C"]]) == [1.0, 0.0]


@pytest.mark.parametrize(
    "answer",
    [
        "A", "A.", "(A)", "a", "a)", "A. heat", "A is correct", "The answer is A", "The answer is A.", "Answer: A",
        "The answer is A because ice melts", "the answer is (a)", "A) heat", "A\n", "A: heat", "A, since it is hot",
    ],
)  # fmt: skip
def test_a_is_read(answer: str) -> None:
    assert CHOICE.scores([answer], [["A"]]) == [1.0]


@pytest.mark.parametrize(
    "answer",
    [
        "", "A dog", "A dog (hot) melts ice", "The answer is a dog", "The answer is A dog", "The answer is a", "heat",
        "I would say heat", "I'm not sure", "Apple", "BB", "It is (A) or (B)", "Neither (B) nor (C).", "a dog",
        "There are 5 of them", "answering this is hard", "Optional", "The answer is Because", "...", "U.S. law",
        "Option A is wrong", "A is wrong", "B is not right", "Both A and B", "The answer is B or C", "B and C", "B, C",
        "(B) or (C)", "A or B", "A. cold\nB. heat", "(A) cold\n(B) heat", "The answer is not B", "Answer: A or B",
        "Bears eat honey", "B2 vitamins", "The answer is an apple", "x = 5", "?",
    ],
)  # fmt: skip
def test_nothing_is_read(answer: str) -> None:
    assert CHOICE.scores([answer] * 26, [[chr(65 + number)] for number in range(26)]) == [0.0] * 26
    assert not CHOICE.reads(answer)


@pytest.mark.parametrize("reference", ["B", "(B)", "B. heat", "b"])
def test_references_are_read_likewise(reference: str) -> None:
    assert CHOICE.reads(reference)
    assert CHOICE.scores(["The answer is (B)"], [[reference]]) == [1.0]
