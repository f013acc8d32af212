"""What users of PEFT's LoRA are used to: patterns, tokens, dtypes, an adapter for each row, and clear refusals."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from exports import export_adapter
from malora_cli import HydraLoraConfig, MaloraConfig
from malora_cli.adapters.layer import MixtureLinear
from malora_cli.export import plan
from malora_cli.export import run as exporting
from malora_cli.modeling import BaseModel
from malora_cli.results import read_json
from tiny_models import randomise, tiny, tokens

SIZES = {"r": 3, "subspace_rank": 8, "num_experts": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"}


def wrapped(
    kind: str = "llama", dtype: torch.dtype = torch.float32, *, autocast: bool = True, **changes: Any
) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(
        tiny(kind, dtype=dtype), MaloraConfig(**{**SIZES, **changes}), autocast_adapter_dtype=autocast
    )
    randomise(model)
    return model.eval()


def linears(model: nn.Module) -> dict[str, MixtureLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, MixtureLinear)}


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor, **given: Any) -> Tensor:
    found: Tensor = model(input_ids=ids, **given).logits
    return found


# Configuration


def test_patterns_set_rank_and_alpha_of_some_linears(tmp_path: Path) -> None:
    model = wrapped(rank_pattern={"q_proj": 5, r"layers\.1\.mlp\.up_proj": 2}, alpha_pattern={"q_proj": 20})
    found = {
        name: (layer.malora_config["default"].r, layer.malora_config["default"].scaling)
        for name, layer in linears(model).items()
    }
    for name, (r, scaling) in found.items():
        expected = 5 if "q_proj" in name else 2 if "layers.1.mlp.up_proj" in name else 3
        assert (r, scaling) == (expected, pytest.approx((20 if "q_proj" in name else 6) / expected)), name
    assert linears(model)["base_model.model.model.layers.0.self_attn.q_proj"].malora_up["default"].shape == (32, 4 * 5)
    model.save_pretrained(tmp_path)
    ids = tokens(2, 6)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny("llama"), tmp_path), ids), logits(model, ids))


def test_patterns_are_checked() -> None:
    with pytest.raises(ValueError, match=r"rank_pattern\['q_proj'\] must be a whole number of at least 1, not 0"):
        MaloraConfig(rank_pattern={"q_proj": 0})
    with pytest.raises(ValueError, match=r"alpha_pattern\['q_proj'\] must be above 0"):
        MaloraConfig(alpha_pattern={"q_proj": -1})
    with pytest.raises(ValueError, match="q_proj: MaloraConfig: subspace_rank 8 is below r 9"):
        wrapped(rank_pattern={"q_proj": 9})


def test_tokens_are_trained_and_saved(tmp_path: Path) -> None:
    model = wrapped(trainable_token_indices=[4, 7]).train()
    ids = torch.tensor([[4, 5, 7, 6]])
    model(input_ids=ids, labels=ids).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "malora_" not in name}
    assert len(trained) == 1
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.add_(1.0)
    model.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny("llama"), tmp_path)
    assert torch.equal(logits(again, ids), logits(model, ids))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"target_parameters": ["weight"]}, "experts stand on linears"),
        ({"ensure_weight_tying": True}, "embeddings are not adapted"),
        ({"lora_bias": True}, "without a bias"),
        ({"use_rslora": True}, "set lora_alpha"),
    ],
)
def test_what_a_mixture_has_not_is_refused_by_its_name(setting: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"MaloraConfig has no {next(iter(setting))}: .*{reason}"):
        MaloraConfig(**setting)


def test_biases_of_the_base_model_stay_as_they_are() -> None:
    assert MaloraConfig(bias="none").bias == "none"
    with pytest.raises(ValueError, match="bias must be 'none', not 'all'"):
        MaloraConfig(bias="all")


def test_hydralora_takes_all_experts_of_each_group_of_layers() -> None:
    model = get_peft_model(tiny("llama"), HydraLoraConfig(num_experts=[2, 4], task_type="CAUSAL_LM"))
    found = {
        (layer.malora_config["default"].experts, layer.malora_config["default"].top_k)
        for layer in linears(model).values()
    }
    assert found == {(2, 2), (4, 4)}
    model(input_ids=tokens(1, 4))
    with pytest.raises(ValueError, match="num_experts must be a whole number of at least 1, not 0"):
        HydraLoraConfig(num_experts=[2, 0])


# Dtypes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [True, False])
def test_experts_take_the_base_models_dtype_where_they_are_not_to_be_cast(
    autocast: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = wrapped(dtype=dtype, autocast=autocast, balance_factor=0.5)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny("llama", dtype=dtype), tmp_path, autocast_adapter_dtype=autocast)
    for name, parameter in [*model.named_parameters(), *loaded.named_parameters()]:
        if "malora_" in name:
            half = not autocast and "router" not in name
            assert parameter.dtype == (dtype if half else torch.float32), name
    ids = tokens(2, 6)
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


# An adapter for each row


@pytest.fixture(scope="module", params=["linear", "block"])
def two(request: pytest.FixtureRequest) -> PeftModel:
    model = wrapped(router=request.param, modules_to_save=["lm_head"])
    other = MaloraConfig(**{**SIZES, "r": 5, "num_experts": 3, "target_modules": ["q_proj", "up_proj"]})
    model.add_adapter("other", other)
    randomise(model, seed=3)
    return model.eval()


def test_each_row_takes_the_adapter_that_is_named_for_it(two: PeftModel) -> None:
    ids, names = tokens(4, 6), ["default", "__base__", "other", "default"]
    mixed = logits(two, ids, adapter_names=names)
    for name in ("default", "other"):
        two.set_adapter(name)
        rows = [row for row, own in enumerate(names) if own == name]
        torch.testing.assert_close(mixed[rows], logits(two, ids)[rows], rtol=1e-4, atol=1e-5)
    with two.disable_adapter():
        torch.testing.assert_close(mixed[1], logits(two, ids)[1], rtol=1e-4, atol=1e-5)
    two.set_adapter("default")
    assert not torch.allclose(logits(two, ids)[2], mixed[2], atol=1e-3)  # the names are gone with their pass


def test_generation_takes_rows_through_beams(two: PeftModel) -> None:
    ids = tokens(2, 5)
    given = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mixed = two.generate(input_ids=ids, adapter_names=["default", "other"], **given)
    for row, name in enumerate(("default", "other")):
        two.set_adapter(name)
        assert torch.equal(two.generate(input_ids=ids[row : row + 1], **given)[0], mixed[row])
    two.set_adapter("default")


def test_names_for_rows_are_checked(two: PeftModel) -> None:
    ids = tokens(2, 5)
    with pytest.raises(ValueError, match="adapter_names has nobody, which no adapter"):
        two(input_ids=ids, adapter_names=["default", "nobody"])
    with pytest.raises(ValueError, match="adapter_names has 3 names for a batch of 2 rows"):
        two(input_ids=ids, adapter_names=["default"] * 3)
    two.train()
    with pytest.raises(ValueError, match="adapter_names is for inference"):
        two(input_ids=ids, adapter_names=["default"] * 2)
    two.eval()
    logits(two, ids)  # a refusal leaves nothing behind


# What others are told of the base model


def test_a_base_model_from_a_gguf_file_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = str(tmp_path / "cache" / "0123")
    assert BaseModel("models/some.gguf", cached).public_name == "some.gguf"
    assert BaseModel("smollm2-135m-instruct", cached).public_name == "smollm2-135m-instruct"
    assert BaseModel("owner/name", "owner/name").public_name == "owner/name"
    adapter = tmp_path / "adapter"
    model = wrapped()
    model.peft_config["default"].base_model_name_or_path = cached
    model.save_pretrained(adapter)
    assert cached in (adapter / "README.md").read_text(encoding="utf-8")
    monkeypatch.setattr(plan, "base_of_run", lambda *_: BaseModel("models/some.gguf", cached))
    monkeypatch.setattr(exporting, "check_adapter", lambda *_: None)  # there is no run whose method it could be of
    manifest = SimpleNamespace(base_model_commit=None)
    record: Any = SimpleNamespace(adapter_at=lambda _: adapter, path=tmp_path, manifest=manifest)
    export_adapter(record, SimpleNamespace(model=None, method=None), tmp_path / "out")  # type: ignore[arg-type]
    assert read_json(tmp_path / "out" / "adapter_config.json")["base_model_name_or_path"] == "some.gguf"
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert cached not in text
    assert "some.gguf" in text
