"""GGUF files: converted once and in full, or refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf as llama_cpp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

import tiny_gguf
from malora_cli.adapters.methods.malora import Malora
from malora_cli.errors import ModelError
from malora_cli.modeling import gguf, load_base, load_tokenizer, resolve_base, wrap
from malora_cli.recipe import ModelSettings

IDS = torch.arange(3, 15).unsqueeze(0)
TINY = {"r": 4, "subspace_rank": 8, "num_experts": 4}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "malora" / "models"


def load(file: Path) -> PreTrainedModel:
    settings = ModelSettings(base=str(file))
    return load_base(resolve_base(settings), settings)


def refusal(file: Path) -> str:
    with pytest.raises(ModelError) as error:
        resolve_base(ModelSettings(base=str(file)))
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"{file}: ")
    return text


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_becomes_the_model_it_holds(tied: bool, tmp_path: Path) -> None:
    original, file = tiny_gguf.llama(tied=tied), tmp_path / "Tiny.F32.gguf"
    tiny_gguf.write(original, file)
    settings = ModelSettings(base=str(file))
    base = resolve_base(settings)
    assert base.commit is None
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
    file.symlink_to(tmp_path / "0123abc")  # as in the hub's cache; its own name says what it is
    tiny_gguf.write(tiny_gguf.llama(tied=True), file, quantised=True)
    folder = Path(resolve_base(ModelSettings(base=str(file))).location)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    model = load(file)
    assert config["rope_theta"] == model.config.rope_parameters["rope_theta"]  # where mlx-lm looks for it
    exact = tiny_gguf.llama(tied=True)(IDS).logits
    assert not torch.equal(model(IDS).logits, exact)
    torch.testing.assert_close(model(IDS).logits, exact, atol=0.01, rtol=0.05)
    wrapped = wrap(model, Malora(**TINY)).train()
    wrapped(input_ids=IDS, labels=IDS).loss.backward()


@pytest.fixture
def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, list[Path]]:
    """A GGUF file, the folder it was converted to, and the files that were converted since."""
    file = tmp_path / "tiny.gguf"
    tiny_gguf.write(tiny_gguf.llama(tied=True), file)
    folder, calls, convert = gguf.converted_folder(file), [], gguf._convert

    def counting(gguf_file: Path, source: str, to: Path) -> dict[str, Any]:
        calls.append(gguf_file)
        return convert(gguf_file, source, to)

    monkeypatch.setattr(gguf, "_convert", counting)
    return file, folder, calls


def test_a_conversion_is_used_again(converted: tuple[Path, Path, list[Path]], cache: Path) -> None:
    file, folder, calls = converted
    assert gguf.converted_folder(file) == folder
    assert folder.parent == cache
    assert not calls


def test_a_damaged_conversion_is_made_anew(converted: tuple[Path, Path, list[Path]]) -> None:
    file, folder, calls = converted
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-10])
    assert gguf.converted_folder(file) == folder
    assert calls == [file]
    assert weights.read_bytes() == before


def test_another_file_of_the_same_name_is_another_model(converted: tuple[Path, Path, list[Path]]) -> None:
    file, folder, calls = converted
    tiny_gguf.write(tiny_gguf.llama(tied=False), file)
    other = gguf.converted_folder(file)
    assert other != folder
    assert calls == [file]


@pytest.mark.parametrize("content", [b"", b"no GGUF at all", "cut"])
def test_what_is_no_gguf_model_is_one_line(content: bytes | str, tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "broken.gguf"
    if isinstance(content, str):
        tiny_gguf.write(tiny_gguf.llama(tied=True), file)
        file.write_bytes(file.read_bytes()[:-5000])
    else:
        file.write_bytes(content)
    assert ": it cannot be read as a GGUF model (" in refusal(file)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, blocked = tmp_path / "tiny.gguf", tmp_path / "blocked"
    tiny_gguf.write(tiny_gguf.llama(tied=True), file)
    blocked.write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(ModelError, match=r"cannot be written.*set XDG_CACHE_HOME"):
        resolve_base(ModelSettings(base=str(file)))


# Whole


@contextmanager
def _writing(monkeypatch: pytest.MonkeyPatch, change: Any) -> Iterator[None]:
    """Within the block every tensor of a file goes through ``change(add, name, values)``."""
    add = llama_cpp.GGUFWriter.add_tensor
    with monkeypatch.context() as patch:
        patch.setattr(
            llama_cpp.GGUFWriter,
            "add_tensor",
            lambda writer, name, values, **_: change(lambda *tensor: add(writer, *tensor), name, values),
        )
        yield


def test_a_file_that_lacks_tensors_is_refused(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would go on with random ones."""
    file = tmp_path / "tiny.gguf"
    with _writing(monkeypatch, lambda add, name, values: None if name.startswith("blk.1.") else add(name, values)):
        tiny_gguf.write(tiny_gguf.llama(tied=True), file)
    assert "9 of its weights are missing, as model.layers.1.input_layernorm.weight" in refusal(file)
    assert not [path for path in cache.iterdir() if path.is_dir()]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("extra", "named"), [("rope_freqs.weight", " (rope_freqs.weight)"), ("blk.0.attn_output.bias", "")]
)
def test_a_file_with_tensors_that_transformers_passes_over_is_refused(
    extra: str, named: str, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the frequencies of Llama 3.1's positions: without them it is another model."""

    def also(add: Any, name: str, values: Any) -> None:
        add(name, values)
        if name == "output_norm.weight":
            add(extra, np.ones(4, dtype=np.float32))

    file = tmp_path / "tiny.gguf"
    with _writing(monkeypatch, also):
        tiny_gguf.write(tiny_gguf.llama(tied=tied), file)
    assert f"it holds 4 numbers more than a 'llama' model takes from a GGUF file{named}. Take" in refusal(file)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_part_of_a_split_model_is_refused(renamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name, or by what it says of itself."""
    with monkeypatch.context() as patch:
        add = llama_cpp.GGUFWriter.add_vocab_size
        patch.setattr(
            llama_cpp.GGUFWriter,
            "add_vocab_size",
            lambda writer, size: (add(writer, size), writer.add_uint16("split.count", 2)),
        )
        tiny_gguf.write(tiny_gguf.llama(tied=True), tmp_path / "part.gguf")
    whole = tmp_path / "big-00001-of-00001.gguf"
    tiny_gguf.write(tiny_gguf.llama(tied=True), whole)
    file = tmp_path / "part.gguf" if renamed else shutil.copy(whole, tmp_path / "big-00001-of-00002.gguf")
    assert "this is one of the 2 parts of a split model. Join them (`llama-gguf-split --merge" in refusal(Path(file))
    assert load(whole)


def test_code_beside_a_file_is_neither_run_nor_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    tiny_gguf.write(tiny_gguf.llama(tied=True), file)
    named = {"auto_map": {"AutoTokenizer": ["code.Own", None]}, "tokenizer_class": "Own"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    (tmp_path / "code.py").write_text("raise SystemExit('run')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    with pytest.raises(ModelError, match=r"model\.gguf: files beside it name Python code .* into a folder of its own"):
        resolve_base(ModelSettings(base=str(file)))
    for name in ("tokenizer_config.json", "code.py"):
        (tmp_path / name).unlink()
    assert resolve_base(ModelSettings(base=str(file))).gguf == file
