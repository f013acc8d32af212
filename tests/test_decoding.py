"""Rows that come and go are continued as each is alone, whatever the architecture and the adapter."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from malora_cli.evals import decoding
from malora_cli.evals.decoding import Row, can_decode, decode
from presets import ROUTED, routed
from tiny_models import _CONFIGS, LAYERS, VOCABULARY, tiny, tokens

PREFIX = tokens(11, seed=1).tolist()


def ends(made: Sequence[int]) -> bool:
    return made[-1] % 7 == 0


def alone(model: PreTrainedModel, row: Row) -> list[int]:
    """One token after another, the whole text anew for each: no cache, no padding, no mask."""
    made: list[int] = []
    while len(made) < row.room and not (made and ends(made)):
        logits = model(torch.tensor([[*row.prompt, *made]]), use_cache=False).logits[0, -1]
        best, second = logits.topk(2).values.tolist()
        assert best - second > 1e-4, "too near for a comparison"
        made.append(int(logits.argmax()))
    return made


def rows(prefix: Sequence[int] = PREFIX) -> list[Row]:
    lengths = [9, 9, 8, 6, 5, 5, 3, 2, 1, 1]
    rooms = [9, 3, 12, 1, 7, 12, 2, 12, 5, 12]
    prompts = [[*prefix, *tokens(length, seed=seed).tolist()] for seed, length in enumerate(lengths)]
    return [Row(prompt, room, ends) for prompt, room in zip(prompts, rooms, strict=True)]


def same_as_alone(model: PreTrainedModel, asked: list[Row], at_once: int) -> None:
    decode(model, asked, at_once)
    made = [row.made for row in asked]
    assert made == [alone(model, row) for row in asked]
    lengths = {len(one) for one in made}
    assert len(lengths) > 2, "rows end at different times"


@pytest.mark.parametrize("kind", _CONFIGS)
@torch.no_grad()
def test_every_architecture(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_SPARE_COLUMNS", 1)  # columns are used up, and moved back
    model = tiny(kind, attention="eager" if kind == "gptj" else "sdpa")
    assert can_decode(model)
    same_as_alone(model, rows(), at_once=4)


@pytest.mark.parametrize("method", ROUTED)
@torch.no_grad()
def test_every_routed_adapter(method: str) -> None:
    model = routed(method).eval()
    same_as_alone(model.get_base_model(), rows(), at_once=4)


@pytest.mark.parametrize("prefix", [[], PREFIX[:4], PREFIX])
@pytest.mark.parametrize("at_once", [1, 2, 10, 64])
@torch.no_grad()
def test_whatever_prompts_have_in_common_and_however_many_go_at_once(prefix: list[int], at_once: int) -> None:
    same_as_alone(tiny("llama"), rows(prefix), at_once)


@torch.no_grad()
def test_what_prompts_begin_with_is_read_once_and_rows_that_end_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = tiny("llama"), list[tuple[int, ...]]()
    plain = decoding._Memory.read

    def spy(memory: decoding._Memory, ids: torch.Tensor, positions: torch.Tensor) -> list[int]:
        read.append(tuple(ids.shape))
        return plain(memory, ids, positions)

    monkeypatch.setattr(decoding._Memory, "read", spy)
    asked = rows()
    decode(model, asked, at_once=4)
    assert read[0] == (1, len(PREFIX))
    assert read[1] == (4, 9), "the first four prompts without it"
    steps = sum(rows for rows, new in read if new == 1)
    first = sum(len(row.made) for row in asked)
    assert steps <= first, "no token is computed for nothing"


def test_models_with_states_of_their_own_are_left_to_transformers() -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=LAYERS, state_size=4)
    assert not can_decode(MambaForCausalLM(config))
