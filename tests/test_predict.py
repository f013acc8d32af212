"""Which prompts are answered together, what each answer is, and going on where some are answered already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from malora_cli.data.batch import Packer
from malora_cli.data.encoding import Encoder
from malora_cli.evals import evaluate as evaluate_module
from malora_cli.evals import predict as predict_module
from malora_cli.evals.predict import Generated, generate_lots, lots, predict
from malora_cli.modeling.room import tokens_held
from train_runs import load, workplace


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


@pytest.mark.parametrize("own_way", [False, True])
def test_what_ended_an_answer(
    tiny_model: Path, encoder: Encoder, own_way: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a model's keys and values are not ours to keep, and transformers generates."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)  # so that answers depend on the prompt
    monkeypatch.setattr(predict_module, "can_decode", lambda _: not own_way)
    prompts = [[7, 8, 9, 10], [11, 12, 13], [14, 15]]

    def made(ends: list[int], texts: list[str]) -> list[Generated]:
        ending = Encoder(encoder.tokenizer)
        ending.stop_ids, ending.stop_texts = ends, texts  # type: ignore[misc]
        found = generate_lots(model, ending, prompts, max_new_tokens=6, batch=Packer(2))
        return [answer for _, answer in sorted(pair for lot in found for pair in lot)]

    model.generation_config.eos_token_id = None
    free = predict_module._Generator(model, encoder, 6, Packer(3))._decoded(prompts, 3)
    assert [(answer.tokens, answer.stop) for answer in made([], [])] == [(6, "length")] * 3
    end, *_ = made([free[0][2]], [])
    assert (end.tokens, end.stop) == (free[0].index(free[0][2]), "end")
    text = encoder.tokenizer.decode(free[1][3])
    assert made([], [text])[1].stop == "stop string"
    monkeypatch.setattr(predict_module, "most_positions", lambda _: 6)
    assert [(answer.tokens, answer.stop) for answer in made([], [])] == [(3, "room"), (4, "room"), (5, "room")]


@pytest.mark.parametrize(("bytes_a_token", "expected"), [(1000, 262_144), (1049, 262_144), (2000, 131_072), (10**9, 1)])
def test_the_tokens_that_a_gpu_holds(bytes_a_token: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 600 MB free and 100 MB reserved, 0.4: 280,000 tokens of 1,000 bytes, beside what any reading takes."""
    read: list[int] = []

    class Model:
        dtype = torch.float32

        def parameters(self) -> Iterator[object]:
            return iter([SimpleNamespace(device=torch.device("cuda"))])

        def _supports_logits_to_keep(self) -> bool:
            return True

        def __call__(self, input_ids: torch.Tensor, **_: object) -> None:
            read.append(input_ids.numel())

    monkeypatch.setattr(torch, "zeros", lambda *shape, **_: torch.empty(shape))
    counters = {
        "mem_get_info": (600_000_000, 0),
        "memory_reserved": 100_000_000,
        "memory_allocated": 0,
        "reset_peak_memory_stats": None,
    }
    for name, value in counters.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 5_000_000 + bytes_a_token * read[-1])
    assert tokens_held(Model()) == expected  # type: ignore[arg-type]


def test_how_many_tokens_go_at_once(tiny_model: Path, tmp_path: Path, model: PreTrainedModel) -> None:
    recipe = workplace(tmp_path, tiny_model)
    room = "train.micro_batch_tokens=2048"
    assert evaluate_module._batch(load(recipe).recipe) == Packer(4)
    assert evaluate_module._batch(load(recipe, room).recipe) == Packer(4, 2048)
    assert evaluate_module._batch(load(recipe, room, "eval.batch_tokens=77").recipe) == Packer(4, 77)
    assert tokens_held(model) is None
