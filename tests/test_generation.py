"""Generation: padded on either side, in a batch or alone, with a cache or without, the tokens are the same."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from presets import ROUTED, routed
from tiny_models import tokens

NEW = 6
PROMPTS = [tokens(length, seed=length) for length in (3, 8, 5)]


def generate(model: PeftModel, ids: Tensor, mask: Tensor, *, cache: bool = True) -> list[list[int]]:
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        use_cache=cache,
        pad_token_id=0,
    )
    return made[:, ids.shape[1] :].tolist()


def padded(*, left: bool) -> tuple[Tensor, Tensor]:
    width = max(map(len, PROMPTS))
    ids, mask = torch.zeros(2, len(PROMPTS), width, dtype=torch.long)
    for row, prompt in enumerate(PROMPTS):
        place = slice(width - len(prompt), width) if left else slice(0, len(prompt))
        ids[row, place], mask[row, place] = prompt, 1
    return ids, mask


@pytest.mark.parametrize("method", ROUTED)
@torch.no_grad()
def test_tokens_do_not_depend_on_batch_padding_or_cache(method: str) -> None:
    model = routed(method).eval()
    alone = [generate(model, prompt.unsqueeze(0), torch.ones(1, len(prompt)))[0] for prompt in PROMPTS]
    assert len({tuple(answer) for answer in alone}) > 1, "the prompts matter"
    ids, mask = padded(left=True)
    assert generate(model, ids, mask) == alone
    assert generate(model, ids, mask, cache=False) == alone
    with model.disable_adapter():
        assert generate(model, ids, mask) != alone, "the adapter matters"
    # On the right, a padded row goes on from its last real token.
    ids, mask = padded(left=False)
    logits = model(input_ids=ids, attention_mask=mask).logits
    following = [logits[row, len(prompt) - 1].argmax().item() for row, prompt in enumerate(PROMPTS)]
    assert following == [answer[0] for answer in alone]
