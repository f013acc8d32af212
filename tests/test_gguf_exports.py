"""Exports for llama.cpp and mlx-lm: names, order of rows, types, and what is left as it was."""

from __future__ import annotations

import importlib.util
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

import tiny_gguf
from malora_cli.adapters.methods import METHODS
from malora_cli.data.batch import TrainExample
from malora_cli.errors import ModelError, RunError
from malora_cli.export.formats import FORMATS, Origin
from malora_cli.export.formats.gguf import _Names
from malora_cli.export.measuring import uniform_gates
from malora_cli.export.request import Request
from malora_cli.export.static import StaticLora, applied, static_lora
from malora_cli.export.verify import Check, keep_expected, keep_rows, read_back, reading_of
from malora_cli.modeling import BaseModel, wrap
from malora_cli.modeling.gguf import converted_folder
from malora_cli.modeling.rope import with_plain_rope
from malora_cli.recipe import ModelSettings
from malora_cli.results import read_json
from tiny_models import tiny

IDS = torch.tensor([[5, 17, 40, 9, 77, 31, 8, 60]])


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def base_in(folder: Path, *, quantised: bool = True) -> BaseModel:
    """A Llama as a GGUF file, whose matrices are Q8_0 or float32."""
    file = folder / "tiny.gguf"
    model = tiny_gguf.llama(tied=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    tiny_gguf.write(model, file, quantised=quantised)
    return BaseModel(str(file), str(converted_folder(file)))


def mixture_on(base: BaseModel) -> PeftModel:
    """Experts on its linears that do something."""
    found = wrap(
        AutoModelForCausalLM.from_pretrained(base.location),
        METHODS["malora"](r=3, subspace_rank=6, num_experts=4),  # type: ignore[call-arg]
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "malora_up" in name:
                parameter.normal_(0, 0.2)
    return found.eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return base_in(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def model(base: BaseModel) -> PeftModel:
    return mixture_on(base)


@pytest.fixture(scope="module")
def lora(model: PeftModel) -> StaticLora:
    return static_lora(model, uniform_gates(model))


def written(
    target: str, lora: StaticLora, base: BaseModel, folder: Path, dtype: str | None = None, form: str = "gguf"
) -> GGUFReader:
    folder.mkdir()
    skeleton = AutoModelForCausalLM.from_pretrained(base.location)
    origin = Origin(base, ModelSettings(base=base.name), skeleton, "tiny.gguf", dtype)
    FORMATS[form].check(target, base, origin.settings, skeleton.config.to_dict())
    FORMATS[form].write(target, lora, origin, folder)
    return GGUFReader(next(folder.glob("*.gguf"))) if form == "gguf" else None  # type: ignore[return-value]


def values(reader: GGUFReader) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}


def test_a_whole_model_is_read_back_by_transformers(
    model: PeftModel, lora: StaticLora, base: BaseModel, tmp_path: Path
) -> None:
    with applied(model, lora):
        expected = logits(model)
    assert (expected - logits(AutoModelForCausalLM.from_pretrained(base.location))).abs().max() > 0.1
    written("dense", lora, base, tmp_path / "f32", "f32")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "f32", gguf_file="model.gguf", dtype=torch.float32)
    torch.testing.assert_close(logits(found.eval()), expected, atol=1e-4, rtol=1e-4)


def test_what_is_not_adapted_stays_byte_for_byte(lora: StaticLora, base: BaseModel, tmp_path: Path) -> None:
    before, after = GGUFReader(Path(base.name)), written("dense", lora, base, tmp_path / "out", "f16")

    def keys(reader: GGUFReader) -> dict[str, object]:
        return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}

    assert keys(before) == keys(after)
    assert [tensor.name for tensor in before.tensors] == [tensor.name for tensor in after.tensors]
    changed = set()
    for one, two in zip(before.tensors, after.tensors, strict=True):
        if one.tensor_type != two.tensor_type:
            assert two.tensor_type == GGMLQuantizationType.F16
            changed.add(one.name)
        else:
            assert one.data.tobytes() == two.data.tobytes()
    parts = ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "ffn_down")
    assert changed == {f"blk.{layer}.{part}.weight" for layer in range(2) for part in parts}


@pytest.mark.parametrize(("dtype", "kind"), [(None, "Q8_0"), ("q8_0", "Q8_0"), ("bf16", "BF16")])
def test_sums_take_the_type_asked_for(
    lora: StaticLora, base: BaseModel, tmp_path: Path, dtype: str | None, kind: str
) -> None:
    exact = values(written("dense", lora, base, tmp_path / "f32", "f32"))
    reader = written("dense", lora, base, tmp_path / "out", dtype)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.attn_q.weight"] == kind
    for name, value in values(reader).items():
        assert np.abs(value - exact[name]).max() <= 0.01 * np.abs(exact[name]).max()


def test_a_lora_is_what_the_whole_model_adds(lora: StaticLora, base: BaseModel, tmp_path: Path) -> None:
    whole = values(written("dense", lora, base, tmp_path / "dense", "f32"))
    plain = values(GGUFReader(Path(base.name)))
    reader = written("lora", lora, base, tmp_path / "lora")
    told = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert told == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 6.0,
    }
    factors = values(reader)
    names = {name.removesuffix(".lora_a") for name in factors if name.endswith(".lora_a")}
    assert {f"{name}.{part}" for name in names for part in ("lora_a", "lora_b")} == set(factors)
    for name, weight in plain.items():
        update = factors[f"{name}.lora_b"] @ factors[f"{name}.lora_a"] if name in names else np.zeros(1)
        np.testing.assert_allclose(weight + update, whole[name], atol=1e-5)
    half = written("lora", lora, base, tmp_path / "half", "f16")
    assert {tensor.tensor_type.name for tensor in half.tensors} == {"F16"}


@pytest.mark.parametrize(
    ("kind", "linear", "name"),
    [
        ("llama", "model.layers.1.self_attn.k_proj", "blk.1.attn_k.weight"),
        ("mistral", "model.layers.0.mlp.down_proj", "blk.0.ffn_down.weight"),
        ("qwen2", "model.layers.0.self_attn.q_proj", "blk.0.attn_q.weight"),
        ("qwen3", "model.layers.1.mlp.gate_proj", "blk.1.ffn_gate.weight"),
        ("gemma3_text", "model.layers.0.mlp.up_proj", "blk.0.ffn_up.weight"),
    ],
)
def test_linears_have_their_names_in_gguf(kind: str, linear: str, name: str) -> None:
    origin = Origin(BaseModel(kind, kind), ModelSettings(base=kind), tiny(kind), kind)
    FORMATS["gguf"].check("lora", origin.base, origin.settings, origin.skeleton.config.to_dict())
    assert _Names(origin).of(linear) == name


def test_what_cannot_be_a_gguf_file_is_refused() -> None:
    def check(target: str, kind: str) -> None:
        FORMATS["gguf"].check(target, BaseModel(kind, kind), ModelSettings(base=kind), {"model_type": kind})

    with pytest.raises(ModelError, match=r"the weights of a 'gpt2' model is not known here.*convert_lora_to_gguf\.py"):
        check("lora", "gpt2")
    with pytest.raises(ModelError, match=r"'llama' is not a GGUF file.*convert_hf_to_gguf\.py"):
        check("dense", "llama")
    with pytest.raises(ModelError, match=r"have no name for model\.layers\.0\.odd"):
        _Names(Origin(BaseModel("a", "a"), ModelSettings(base="a"), tiny("llama"), "a")).of("model.layers.0.odd")


@pytest.mark.parametrize("quantised", [True, False])
def test_llama_cpp_computes_what_the_run_does(quantised: bool, tmp_path: Path) -> None:
    """Exactly, in float32; with quantised weights it rounds what they are multiplied by, with a LoRA or without."""
    if importlib.util.find_spec("llama_cpp_py_sync") is None:
        pytest.skip("llama.cpp is not installed (pip install llama-cpp-py-sync)")
    model = mixture_on(base := base_in(tmp_path, quantised=quantised))
    lora = static_lora(model, uniform_gates(model))
    rows = [TrainExample(list(range(3, 30)), ((0, 27),), task=0)]
    kept = tmp_path / "rows.safetensors", tmp_path / "expected.safetensors"
    keep_rows(model, rows, kept[0])
    keep_expected(model, kept[0], [0], kept[1], lora)
    for target, dtype in (("lora", None), ("dense", "f32")):
        written(target, lora, base, tmp_path / target, dtype)
        request = Request(target, "gguf", dtype=dtype)  # type: ignore[arg-type]
        reading = reading_of(request, tmp_path / target, base, ModelSettings(base=base.name))
        assert reading is not None
        # Twice: what was read before must have left nothing behind.
        for found in read_back([Check(tmp_path / target, reading, *kept)] * 2):
            if "unavailable" in found:
                pytest.skip(found["unavailable"])
            assert found["largest_difference"] < (0.2 if quantised else 1e-4)
            assert found["base_divergence"] < (0.01 if quantised else 1e-6)
    wrong = {name: type(one)(one.down_SI, one.up_OS.flip(0)) for name, one in lora.items()}
    written("lora", wrong, base, tmp_path / "wrong")
    reading = reading_of(Request("lora", "gguf"), tmp_path / "wrong", base, ModelSettings(base=base.name))
    with pytest.raises(RunError, match=r"read back in llama\.cpp, divergence from the run"):
        read_back([Check(tmp_path / "wrong", reading, *kept)])  # type: ignore[arg-type]


# ---------------------------------------------------------------- mlx-lm


def test_mlx_lm_multiplies_by_the_transposed_factors(lora: StaticLora, base: BaseModel, tmp_path: Path) -> None:
    written("lora", lora, base, tmp_path / "out", form="mlx")
    weights, config = (
        load_file(tmp_path / "out" / "adapters.safetensors"),
        read_json(tmp_path / "out" / "adapter_config.json"),
    )
    told = config["lora_parameters"]
    assert (config["fine_tune_type"], config["num_layers"], told["rank"], told["scale"]) == ("lora", 2, 6, 1.0)
    assert "self_attn.q_proj" in told["keys"]
    for name, one in lora.items():
        x = torch.randn(3, one.down_SI.shape[1])
        ours = x @ one.down_SI.T @ one.up_OS.T
        torch.testing.assert_close(told["scale"] * (x @ weights[f"{name}.lora_a"] @ weights[f"{name}.lora_b"]), ours)
    some = {name: one for name, one in lora.items() if "layers.0" in name}
    with pytest.raises(ModelError, match=r"--format mlx: mlx-lm adapts the same linears in all of the last layers"):
        written("lora", some, base, tmp_path / "some", form="mlx")
    last = {name: one for name, one in lora.items() if "layers.1" in name}
    written("lora", last, base, tmp_path / "last", form="mlx")
    assert read_json(tmp_path / "last" / "adapter_config.json")["num_layers"] == 1


def test_mlx_lm_computes_what_the_run_does(tmp_path: Path) -> None:
    if importlib.util.find_spec("mlx_lm") is None:
        pytest.skip("mlx-lm is not installed (pip install 'mlx-lm[cpu]')")
    model = mixture_on(base := base_in(tmp_path, quantised=False))
    lora = static_lora(model, uniform_gates(model))
    twice = {name: type(one)(one.down_SI, 2 * one.up_OS) for name, one in lora.items()}
    keep_rows(model, [TrainExample(list(range(3, 30)), ((0, 27),), task=0)], rows := tmp_path / "rows.safetensors")
    checks = []
    for name, one in (("once", lora), ("twice", twice), ("again", lora)):
        expected = tmp_path / f"{name}.safetensors"
        keep_expected(model, rows, [0], expected, one)
        written("lora", one, base, tmp_path / name, form="mlx")
        reading = reading_of(Request("lora", "mlx"), tmp_path / name, base, ModelSettings(base=base.name))
        assert reading is not None
        checks.append(Check(tmp_path / name, reading, rows, expected))
    for found in read_back(checks):
        if "unavailable" in found:
            pytest.skip(found["unavailable"])
        assert found["largest_difference"] < 1e-4
        assert found["mean_effect"] > 0.01
    with pytest.raises(RunError, match="read back in mlx-lm, logits differ by"):
        read_back([replace(checks[0], folder=tmp_path / "twice")])


@pytest.mark.parametrize(
    ("rope", "told"),
    [
        ({"rope_type": "default", "rope_theta": 10_000.0}, None),
        ({"rope_type": "default", "rope_theta": 5e5}, "rope_theta: 500000.0"),
        ({"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}, r'rope_scaling: {"rope_type": "linear", .*}'),
    ],
)
def test_a_base_whose_rope_mlx_lm_does_not_read_is_told_of(rope: dict[str, Any], told: str | None) -> None:
    """Transformers reads both names, and they say the same to it."""
    config = {**LlamaConfig().to_dict(), "rope_parameters": rope}
    plain = with_plain_rope(config)
    assert LlamaConfig(**plain).rope_parameters == LlamaConfig(**config).rope_parameters
    for given, message in ((config, told), (plain, None)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            FORMATS["mlx"].check("lora", BaseModel("base", "base"), ModelSettings(base="base"), given)
        assert len(caught) == (message is not None)
        if message is not None:
            assert re.search(rf"^'base' has its RoPE in .* write {message} beside it there$", str(caught[0].message))
