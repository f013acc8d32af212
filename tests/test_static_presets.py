"""The LoRA that every routed preset is for fixed gates, read back by plain PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

from malora_cli.adapters.kernel import Seen
from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.routing import routing_of
from malora_cli.export.formats import FORMATS, Origin
from malora_cli.export.static import static_lora
from malora_cli.modeling import BaseModel
from malora_cli.recipe import ModelSettings
from presets import ROUTED, routed
from tiny_models import tiny, tokens

IDS = tokens(2, 7)


@pytest.mark.parametrize("method", ROUTED)
def test_the_exported_lora_is_the_mixture_with_its_gates_held(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = routed(method).eval()
    routing = routing_of(model)
    assert routing is not None
    gate_LE = torch.rand(len(routing.names), 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        routed_logits = model(input_ids=IDS).logits

    def held(layer: MixtureLinear, _gate: Tensor | None, _seen: Seen | None, x: Tensor, name: str) -> Tensor:
        experts = layer.malora_config[name].experts
        return gate_LE[layer._router_index, :experts].expand(*x.shape[:-1], experts)

    monkeypatch.setattr(MixtureLinear, "_handed_on", held)
    monkeypatch.setattr(MixtureLinear, "_router", lambda *_: None)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    _write(model, gate_LE, tmp_path / "lora")
    loaded = PeftModel.from_pretrained(tiny("llama"), tmp_path / "lora")
    assert type(loaded.peft_config["default"]) is LoraConfig
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, routed_logits, atol=1e-2)


def _write(model: PeftModel, gate_LE: Tensor, folder: Path) -> None:
    lora = static_lora(model, gate_LE)
    rank = max(one.rank for one in lora.values())
    folder.mkdir()
    origin = Origin(BaseModel("tiny", "tiny"), ModelSettings(base="tiny"), tiny("llama"), "tiny")
    FORMATS["peft"].write("lora", {name: one.padded(rank) for name, one in lora.items()}, origin, folder)
