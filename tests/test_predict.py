"""Which prompts are answered together, what each answer is, and going on where some are answered already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from malora_cli.data.batch import Packer
from malora_cli.data.encoding import Encoder
from malora_cli.evals import predict as predict_module
from malora_cli.evals.predict import Generated, generate_lots, lots, predict


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(tiny_model))


def of_lengths(*lengths: int) -> list[list[int]]:
    return [[index] * length for index, length in enumerate(lengths)]


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (Packer(1), [[3, 1, 5, 4], [0, 2]]),
        (Packer(2), [[3, 1, 5, 4, 0, 2]]),
        (Packer(8, 1), [[3, 1, 5, 4], [0, 2]]),
        (Packer(8, 21), [[3, 1, 5, 4], [0, 2]]),
        (Packer(8, 22), [[3, 1, 5, 4, 0, 2]]),
    ],
)
def test_the_longest_prompts_come_first_by_rows_and_tokens(batch: Packer, expected: list[list[int]]) -> None:
    assert lots(of_lengths(3, 6, 2, 8, 4, 5), batch, max_new_tokens=3) == expected


def test_equal_prompts_are_answered_once(model: PreTrainedModel, encoder: Encoder) -> None:
    prompts = [[5, 6], [7, 8, 9], [5, 6], [7, 8], [5, 6]]
    assert lots(prompts, Packer(8), 4) == [[1, 0, 3]]
    [lot] = generate_lots(model, encoder, prompts, max_new_tokens=4, batch=Packer(8))
    assert [index for index, _ in lot] == [1, 0, 2, 4, 3]
    answers = dict(lot)
    assert answers[0] == answers[2] == answers[4]
    texts = predict(model, encoder, prompts, max_new_tokens=4, batch=Packer(8))
    assert texts == [answers[index].text for index in range(5)]


@pytest.mark.parametrize("done", [(), (0, 1, 2, 3), (6, 7, 8), (3, 5), range(9)])
def test_whole_lots_are_left_out_and_others_made_anew(
    model: PreTrainedModel, encoder: Encoder, done: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_module, "_BATCHES", 1)
    prompts = of_lengths(9, 8, 7, 6, 5, 4, 3, 2, 1)

    def made(done: Sequence[int] = ()) -> list[list[tuple[int, Generated]]]:
        return list(generate_lots(model, encoder, prompts, max_new_tokens=3, batch=Packer(2), done=done))

    assert made(done) == [lot for lot in made() if not all(index in done for index, _ in lot)]
