"""Every routed preset on every architecture, at tiny sizes."""

from __future__ import annotations

import pytest
import torch

from malora_cli.modeling import wrap
from presets import ROUTED, settings
from tiny_models import randomise, tiny, tokens

IDS = tokens(2, 7)


@pytest.mark.parametrize("method", ROUTED)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3_text", "mistral", "phi", "gpt2"])
def test_changes_nothing_at_first_and_trains_everything_after(kind: str, method: str) -> None:
    base = tiny(kind)
    with torch.no_grad():
        expected = base(input_ids=IDS).logits
    model = wrap(base, settings(method)).eval()
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, expected)
    randomise(model)
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=IDS).logits, expected, atol=1e-3)
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    frozen = model.peft_config["default"].frozen
    for name, parameter in model.named_parameters():
        trains = "malora_" in name and not any(f"malora_{part}" in name for part in frozen)
        assert (parameter.grad is not None) == trains, name
        assert not trains or parameter.grad.isfinite().all()
