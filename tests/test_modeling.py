"""Base models: found, converted, loaded, wrapped; every way it can go wrong is one clear line."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import tiny_gguf
from malora_cli.adapters.methods.malora import Malora
from malora_cli.errors import ModelError
from malora_cli.modeling import (
    empty_base,
    gguf,
    load_base,
    load_tokenizer,
    resolve_base,
    wrap,
)
from malora_cli.modeling.base import ALIASES, BaseModel, PackagedModel
from malora_cli.recipe import ModelSettings

IDS = torch.arange(3, 15).unsqueeze(0)
TINY = {"r": 4, "subspace_rank": 8, "num_experts": 4}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "malora" / "models"


def load(folder: Path | str, **settings: str) -> PreTrainedModel:
    model = ModelSettings(base=str(folder), **settings)  # type: ignore[arg-type]
    return load_base(resolve_base(model), model)


def message(error: pytest.ExceptionInfo[ModelError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# GGUF


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_becomes_the_model_it_holds(tied: bool, tmp_path: Path) -> None:
    original, file = tiny_gguf.llama(tied=tied), tmp_path / "Tiny.F32.gguf"
    tiny_gguf.write(original, file)
    settings = ModelSettings(base=str(file))
    base = resolve_base(settings)
    assert base.is_local
    assert base.name == str(file)
    model = load_base(base, settings)
    assert torch.equal(model(IDS).logits, original(IDS).logits)
    weights = load_file(Path(base.location) / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert ("lm_head.weight" in weights) is not tied

    tokenizer = load_tokenizer(base, settings)
    assert tokenizer.chat_template == tiny_gguf.TEMPLATE
    encoded = tokenizer("<|im_start|>cab c<|im_end|>")["input_ids"]
    assert (encoded[0], encoded[-1]) == (1, 2)
    assert tokenizer.convert_ids_to_tokens(encoded)[1:-1] == ["c", "ab", "Ġ", "c"]


def test_a_quantised_gguf_is_trainable_float32(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    tiny_gguf.write(tiny_gguf.llama(tied=True), file, quantised=True)
    folder = Path(resolve_base(ModelSettings(base=str(file))).location)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    model = load(file)
    exact = tiny_gguf.llama(tied=True)(IDS).logits
    assert not torch.equal(model(IDS).logits, exact)
    torch.testing.assert_close(model(IDS).logits, exact, atol=0.01, rtol=0.05)
    wrapped = wrap(model, Malora(**TINY)).train()
    wrapped(input_ids=IDS, labels=IDS).loss.backward()


@pytest.fixture
def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, list[Path]]:
    """A GGUF file, the folder it was converted to, and the folders that were converted since."""
    file = tmp_path / "tiny.gguf"
    tiny_gguf.write(tiny_gguf.llama(tied=True), file)
    folder, calls, convert = gguf.converted_folder(file), [], gguf._convert

    def counting(gguf_file: Path, source: str, to: Path) -> None:
        calls.append(to)
        convert(gguf_file, source, to)

    monkeypatch.setattr(gguf, "_convert", counting)
    return file, folder, calls


def test_a_conversion_is_used_again(converted: tuple[Path, Path, list[Path]], cache: Path) -> None:
    file, folder, calls = converted
    assert gguf.converted_folder(file) == folder
    assert folder.parent == cache
    weights = folder / "model.safetensors"
    os.utime(weights, (1, 1))  # touched, as by a copy: the hash still holds
    assert gguf.converted_folder(file) == folder
    assert json.loads((folder / "conversion.json").read_text())["stamp"][1] == 1_000_000_000
    assert not calls


@pytest.mark.parametrize("damage", ["weights", "cut", "gone", "config", "tokenizer", "record", "no-record"])
def test_a_damaged_conversion_is_made_anew(damage: str, converted: tuple[Path, Path, list[Path]]) -> None:
    file, folder, calls = converted
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "conversion.json"}
    weights = folder / "model.safetensors"
    if damage == "weights":
        raw = bytearray(weights.read_bytes())
        raw[-1] ^= 1
        weights.write_bytes(raw)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "gone":
        weights.unlink()
    elif damage == "config":
        (folder / "config.json").write_text("{}")
    elif damage == "tokenizer":
        (folder / "tokenizer.json").unlink()
    elif damage == "record":
        (folder / "conversion.json").write_text('{"sha256":')
    else:
        (folder / "conversion.json").unlink()
    assert gguf.converted_folder(file) == folder
    assert calls == [folder]
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before} == before


def test_another_file_of_the_same_name_is_another_model(converted: tuple[Path, Path, list[Path]]) -> None:
    file, folder, calls = converted
    tiny_gguf.write(tiny_gguf.llama(tied=False), file)
    other = gguf.converted_folder(file)
    assert other != folder
    assert calls == [other]


def test_a_conversion_that_is_stopped_leaves_nothing_that_counts(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tiny.gguf"
    tiny_gguf.write(tiny_gguf.llama(tied=True), file)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "save_file", stop)
        with pytest.raises(KeyboardInterrupt):
            gguf.converted_folder(file)
    assert not [path for path in cache.iterdir() if path.is_dir()]
    # Killed outright, it cannot clean up; the next one does.
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "save_file", stop)
        patch.setattr(gguf.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            gguf.converted_folder(file)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [
        f".converting-{next(path for path in cache.iterdir() if path.suffix == '.lock').stem}"
    ]
    folder = gguf.converted_folder(file)
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]


@pytest.mark.parametrize("content", [b"", b"no GGUF at all", "cut"])
def test_what_is_no_gguf_model_is_one_line(content: bytes | str, tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "broken.gguf"
    if isinstance(content, str):
        tiny_gguf.write(tiny_gguf.llama(tied=True), file)
        file.write_bytes(file.read_bytes()[:-5000])
    else:
        file.write_bytes(content)
    with pytest.raises(ModelError) as error:
        resolve_base(ModelSettings(base=str(file)))
    assert message(error).startswith(f"{file}: it cannot be read as a GGUF model (")
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, blocked = tmp_path / "tiny.gguf", tmp_path / "blocked"
    tiny_gguf.write(tiny_gguf.llama(tied=True), file)
    blocked.write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(ModelError, match=r"cannot be written.*set XDG_CACHE_HOME") as error:
        resolve_base(ModelSettings(base=str(file)))
    message(error)


# Finding


def test_a_short_name_without_its_package_says_the_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALIASES, "tiny", PackagedModel("no-such-package", "pip install no-such-package==1"))
    with pytest.raises(ModelError) as error:
        resolve_base(ModelSettings(base="tiny"))
    assert message(error).endswith("is not installed. Install it: pip install no-such-package==1")


def test_a_package_whose_file_is_gone_counts_as_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = importlib.metadata.PackagePath("gone/model.gguf")
    gone.dist = importlib.metadata.distribution("pytest")
    monkeypatch.setattr(importlib.metadata, "files", lambda _: [gone])
    with pytest.raises(ModelError, match="not installed"):
        PackagedModel("some-package", "pip install some-package").file("tiny")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./no/such/folder", "there is no such folder"),
        ("/no/such/folder", "there is no such folder"),
        ("./no-such-folder", "there is no such folder"),
        ("~/no-such-folder", "there is no such folder"),
        ("a/b/c", "there is no such folder"),
        ("no-such-file.gguf", "there is no such GGUF file"),
        ("someone/some-model", "cannot be loaded"),
        ("smollm2-135m-instuct", "did you mean 'smollm2-135m-instruct'?"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(name: str, expected: str) -> None:
    settings = ModelSettings(base=name)
    with pytest.raises(ModelError) as error:
        load_base(resolve_base(settings), settings)
    assert f"model '{name}'" in message(error)
    assert expected in message(error)
    if "loaded" in expected:
        for function in (load_tokenizer, empty_base):
            with pytest.raises(ModelError, match="cannot be loaded"):
                function(resolve_base(settings), settings)


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no model \(no config.json\)") as error:
        resolve_base(ModelSettings(base=str(tmp_path)))
    message(error)


# Loading


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_pickled_checkpoint_is_refused(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        load(folder)
    assert "safetensors" in message(error)


def test_damaged_weights_are_one_line(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        load(folder)
    message(error)


def test_missing_weights_are_refused_rather_than_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"], weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"2 of its weights are missing, as model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_weights_of_other_sizes_are_one_line(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(5)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        load(folder)
    message(error)


def test_settings_reach_the_model(folder: Path) -> None:
    model = load(folder, dtype="bfloat16", attention="eager")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    base = resolve_base(ModelSettings(base=str(folder)))
    assert BaseModel("x", "someone/some-model").sha256() is None
    first = base.sha256()
    assert first == resolve_base(ModelSettings(base=str(folder))).sha256()
    save_file({"a": torch.ones(1)}, folder / "more.safetensors")
    assert base.sha256() != first


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash attention is installed")
def test_an_attention_that_is_not_there_is_one_line(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"Set model\.attention to sdpa or eager") as error:
        load(folder, attention="flash_attention_2")
    message(error)
