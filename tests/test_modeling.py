"""Base models: found, converted, loaded, wrapped; every way it can go wrong is one clear line."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from malora_cli.adapters.methods import METHODS
from malora_cli.errors import ModelError
from malora_cli.modeling import adapter as adapter_module
from malora_cli.modeling import base as base_module
from malora_cli.modeling import (
    empty_base,
    load_adapter,
    load_base,
    load_tokenizer,
    resolve_base,
    save_adapter,
    wrap,
)
from malora_cli.modeling.finding import ALIASES, BaseModel, PackagedModel
from malora_cli.recipe import ModelSettings


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
        ("./no/such/folder", "folder not found"),
        ("/no/such/folder", "folder not found"),
        ("./no-such-folder", "folder not found"),
        ("~/no-such-folder", "folder not found"),
        ("a/b/c", "folder not found"),
        ("no-such-file.gguf", "GGUF file not found"),
        ("someone/some-model", "cannot be loaded"),
        ("smollm2-135m-instuct", "did you mean 'smollm2-135m-instruct'?"),
        ("n" * 300, "it cannot be looked up (File name too long)"),
        ("someone/" + "n" * 300, "cannot be loaded (Repo id must"),
        ("n" * 200, "cannot be loaded (Repo id must"),
        ("~no-such-user/model", "folder not found"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(name: str, expected: str) -> None:
    settings = ModelSettings(base=name)
    with pytest.raises(ModelError) as error:
        load_base(resolve_base(settings), settings)
    assert f"model '{name}'" in message(error)
    assert expected in message(error)
    if expected == "cannot be loaded":
        for function in (load_tokenizer, empty_base):
            with pytest.raises(ModelError, match="cannot be loaded"):
                function(BaseModel(name, name, "0" * 40), settings)


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model found in this folder \(config.json is missing\)") as error:
        resolve_base(ModelSettings(base=str(tmp_path)))
    message(error)


# Loading


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_pickled_checkpoint_is_refused(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"no safetensors weights found in this folder \(model\.safetensors is missing\)"
    ) as error:
        load(folder)
    message(error)


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


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried 1 bytes"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_memory_that_does_not_suffice_is_said(
    error: Exception, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that the model cannot be had, or that the adapter is another one's."""

    def fail(*_: object, **__: object) -> None:
        raise error

    method, base = METHODS["lora"](r=4), load(folder)
    save_adapter(wrap(base, method), tmp_path / "adapter")
    base = load(folder)
    for place, name, act in (
        (AutoModelForCausalLM, "from_pretrained", lambda: load(folder)),
        (base_module, "reads_across_examples", lambda: load(folder)),
        (adapter_module, "get_peft_model", lambda: wrap(base, method)),
        (PeftModel, "from_pretrained", lambda: load_adapter(base, tmp_path / "adapter", method)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fail)
            with pytest.raises(
                ModelError, match=r"(it|adapter) does not fit into memory \(.*\)\. Set model\.dtype"
            ) as said:
                act()
        message(said)


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
    assert BaseModel("x", "someone/some-model", "0" * 40).sha256() is None
    first = base.sha256()
    assert first == resolve_base(ModelSettings(base=str(folder))).sha256()
    save_file({"a": torch.ones(1)}, folder / "more.safetensors")
    assert base.sha256() == first  # of what is loaded


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash attention is installed")
def test_an_attention_that_is_not_there_is_one_line(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"Set model\.attention to sdpa or eager") as error:
        load(folder, attention="flash_attention_2")
    message(error)
