"""Every method that a recipe can name: one contract over all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel

from malora_cli.adapters.methods import METHODS
from malora_cli.modeling import wrap
from tiny_models import tiny

#: Weights that stay at their start, by method.
FROZEN = {
    "asylora": "lora_A",
    "moasylora": "malora_down",
    "malora-fixed-subspace": "malora_down",
    "malora-frozen-coefficients": "malora_coefficient",
}
IDS = torch.arange(24).view(2, 12)


def _wrapped(method: str) -> PeftModel:
    torch.manual_seed(0)
    return wrap(tiny("llama"), METHODS[method]())


def _weights(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_starts_as_the_base_model(method: str) -> None:
    model = _wrapped(method).eval()
    with torch.no_grad():
        adapted = model(input_ids=IDS).logits
        with model.disable_adapter():
            base = model(input_ids=IDS).logits
    # DoRA divides by a norm and multiplies by it again.
    torch.testing.assert_close(adapted, base, rtol=0, atol=1e-5 if method == "dora" else 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_changes_what_is_trained_and_nothing_else(method: str) -> None:
    model = _wrapped(method).train()
    before = _weights(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):  # B starts at zero, so what stands before it moves in the second step only
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    frozen = FROZEN.get(method)
    for name, parameter in model.named_parameters():
        is_adapter = ("lora_" in name or "malora_" in name) and not (frozen and frozen in name)
        assert parameter.requires_grad == is_adapter, name
        assert torch.equal(parameter, before[name]) != is_adapter, name


@pytest.mark.parametrize("method", METHODS)
def test_reads_back_what_it_saved(method: str, tmp_path: Any) -> None:
    model = _wrapped(method)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny("llama"), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, again(input_ids=IDS).logits)


@pytest.mark.parametrize(("method", "weights"), FROZEN.items())
def test_frozen_weights_stay_frozen_when_the_adapter_is_made_trainable_again(method: str, weights: str) -> None:
    model = _wrapped(method)
    model.set_adapter("default")
    assert {p.requires_grad for name, p in model.named_parameters() if weights in name} == {False}


def test_same_init_gives_all_experts_of_a_linear_one_start() -> None:
    for name, parameter in _wrapped("molora-same-init").named_parameters():
        if "malora_down" in name:
            experts = parameter.unflatten(0, (8, -1))
            assert all(torch.equal(expert, experts[0]) for expert in experts)


@pytest.mark.parametrize("method", METHODS)
def test_says_where_it_comes_from(method: str) -> None:
    assert "Source:" in (METHODS[method].__doc__ or "")
    assert METHODS[method].model_fields["name"].description
