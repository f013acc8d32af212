"""What is loaded as a base model is safetensors of its own, the same as before, and on the device of the process."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants
from peft import get_peft_model_state_dict
from peft.utils import save_and_load
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from exports import export_adapter
from malora_cli.adapters.methods import METHODS
from malora_cli.errors import ModelError
from malora_cli.evals.evaluate import evaluate_run
from malora_cli.modeling import load_adapter, load_base, load_tokenizer, resolve_base, save_adapter, wrap
from malora_cli.modeling.device import own_device
from malora_cli.recipe import ModelSettings
from malora_cli.results import RunRecord, files, remembered_sha256
from malora_cli.train.arguments import training_arguments
from train_runs import Killed, kill_at, load, train_run, workplace

COMMIT, NEXT = "a" * 40, "b" * 40


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A model whose weights are spread over two files."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({name: weights[name] for name in own}, folder / part, metadata={"format": "pt"})
    _write_index(folder, {name: part for part, own in parts.items() for name in own})
    return folder


def _write_index(folder: Path, weight_map: Any) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _weight_map(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"])


def _load(base: Path | str) -> Any:
    settings = ModelSettings(base=str(base))
    return load_base(resolve_base(settings), settings)


def _refusal(base: Path | str) -> str:
    with pytest.raises(ModelError) as error:
        _load(base)
    assert "\n" not in str(error.value)
    return str(error.value)


def _sha256(folder: Path) -> str | None:
    return resolve_base(ModelSettings(base=str(folder))).sha256()


@pytest.fixture
def no_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading does not get as far as transformers."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))


BAD_NAMES = ["../w.pt", "../w.safetensors", "/tmp/w.safetensors", "w.pt", "a/../../w.safetensors", "..\\w.safetensors",
             "C:\\w.safetensors", "w.safetensors/../w.bin", 3, None]  # fmt: skip


@pytest.mark.usefixtures("no_transformers")
@pytest.mark.parametrize("name", BAD_NAMES)
def test_an_index_that_names_other_files_is_refused(name: object, folder: Path) -> None:
    torch.save({"w": torch.ones(1)}, folder.parent / "w.pt")
    _write_index(folder, {**_weight_map(folder), "model.norm.weight": name})
    assert f"it names {str(name)!r} as weights, and only safetensors files of the model's own folder" in _refusal(
        folder
    )
    with pytest.raises(ModelError, match="it names"):
        _sha256(folder)


@pytest.mark.usefixtures("no_transformers")
@pytest.mark.parametrize("name", ["../model.safetensors", "adapter_model.bin", "/tmp/a.safetensors.index.json", 1])
def test_a_configuration_that_names_other_files_is_refused(name: object, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": name}), encoding="utf-8")
    assert f"it names {str(name)!r} as weights" in _refusal(folder)


@pytest.mark.usefixtures("no_transformers")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "it cannot be read (not valid JSON)"),
        ("[" * 100_000, "it cannot be read (not valid JSON)"),
        ("[1]", "it cannot be read (not valid JSON)"),
        ("{}", "this index of weights names no files (weight_map)"),
        ('{"weight_map": ["one.safetensors"]}', "this index of weights names no files (weight_map)"),
        ('{"weight_map": {"a": "three.safetensors"}}', "three.safetensors: this file of weights is missing"),
    ],
)
def test_a_damaged_index_is_one_line(text: str, expected: str, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    assert expected in _refusal(folder)


def test_an_adapter_beside_a_model_is_not_loaded(folder: Path) -> None:
    """transformers would load the model that the adapter names, and the adapter onto it."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}', encoding="utf-8")
    assert "this folder holds an adapter (adapter_config.json)" in _refusal(folder)


def test_the_hash_is_of_what_is_loaded(folder: Path, tiny_model: Path) -> None:
    assert torch.equal(_load(folder).lm_head.weight, _load(tiny_model).lm_head.weight)
    first = _sha256(folder)
    shutil.copy(tiny_model / "model.safetensors", folder / "more.safetensors")
    assert _sha256(folder) == first
    _write_index(folder, dict(reversed(_weight_map(folder).items())))
    assert _sha256(folder) != first
    second = _sha256(folder)
    save_file({"a": torch.ones(1)}, folder / "two.safetensors")
    assert _sha256(folder) != second
    shutil.copy(tiny_model / "model.safetensors", folder)  # which transformers prefers to the index
    assert _sha256(folder) == _sha256(tiny_model)


def test_a_hash_is_worked_out_once_while_the_file_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    sha256 = files.file_sha256
    monkeypatch.setattr(files, "file_sha256", lambda path: hashed.append(path) or sha256(path))
    monkeypatch.setattr(files, "_TICK_NS", -(10**12))  # any file is old enough
    file = tmp_path / "weights"
    file.write_text("one")
    first = remembered_sha256(file)
    assert first == remembered_sha256(file) == sha256(file)
    assert len(hashed) == 1
    status = file.stat()
    file.write_text("two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # of the same size, and its time set back
    assert remembered_sha256(file) == sha256(file) != first
    for note in (tmp_path / "cache" / "malora" / "hashes").iterdir():
        note.write_text("{")
    assert remembered_sha256(file) == sha256(file)


def test_a_file_that_was_written_just_now_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("one")
    remembered_sha256(tmp_path / "weights")
    assert not (tmp_path / "cache" / "malora" / "hashes").exists()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# Devices


def test_weights_go_straight_to_the_gpu_of_the_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def stop(_location: str, **arguments: Any) -> None:
        asked.update(arguments)
        raise OSError("stopped")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", stop)
    assert own_device() == torch.device("cpu")
    _refusal(folder)
    assert asked["device_map"] is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert own_device() == torch.device("cuda:0"), "a launcher may show each process its own GPU alone"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device() == torch.device("cuda:1")
    _refusal(folder)
    assert asked["device_map"] == {"": "cuda:1"}


def test_training_computes_where_the_model_is(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Mac's accelerator has no float64."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    recipe = load(workplace(tmp_path, tiny_model)).recipe
    arguments = training_arguments(recipe, RunRecord(tmp_path / "runs" / "tiny"), 6, resumed=False)
    assert arguments.use_cpu
    assert arguments.device == own_device()


# The hub


@pytest.fixture
def on_hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub model that this machine has at one commit, where its main branch was when it was loaded; the snapshot."""
    root = tmp_path / "hub" / "models--someone--some-model"
    snapshot = Path(shutil.copytree(tiny_model, root / "snapshots" / COMMIT))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def _hub_says(answer: Any, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Let the hub answer with a commit, or with an error; returns the revisions that it is asked for."""
    asked: list[str | None] = []

    def model_info(_self: HfApi, _name: str, *, revision: str | None, timeout: float) -> Any:
        asked.append(revision)
        if isinstance(answer, Exception):
            raise answer
        return type("ModelInfo", (), {"sha": revision or answer})

    monkeypatch.setattr(HfApi, "model_info", model_info)
    return asked


SETTINGS = ModelSettings(base="someone/some-model")


def test_a_hub_model_is_the_commit_that_its_name_stood_for(on_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _hub_says(NEXT, monkeypatch)
    base = resolve_base(SETTINGS)
    assert (base.commit, base.sha256()) == (NEXT, None)
    assert asked == [None]
    before = resolve_base(SETTINGS, commit=COMMIT)
    assert (before.commit, asked) == (COMMIT, [None, COMMIT])
    assert torch.equal(
        load_base(before, SETTINGS)(torch.tensor([[3]])).logits, _load(on_hub)(torch.tensor([[3]])).logits
    )


def test_a_hub_that_does_not_answer_is_asked_once(on_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would try each file again for half a minute."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = _hub_says(ConnectionError("Name or service not known\nmore"), monkeypatch)
    with pytest.warns(UserWarning, match=rf"the hub cannot be reached \(Name or service not known\).* commit {COMMIT}"):
        base = resolve_base(SETTINGS)
    assert base.commit == COMMIT
    assert asked == [None]
    assert constants.HF_HUB_OFFLINE
    assert load_tokenizer(base, SETTINGS).eos_token == "<|im_end|>"
    assert load_base(base, SETTINGS).config.model_type == "llama"


@pytest.mark.usefixtures("on_hub")
def test_a_hub_that_does_not_answer_for_what_is_not_here_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    _hub_says(ConnectionError("Name or service not known"), monkeypatch)
    expected = "the hub cannot be reached, and it is not on this machine: Name or service not known"
    assert expected in _refusal("someone/another-model")


@pytest.mark.usefixtures("no_transformers")
def test_a_hub_model_with_other_weights_is_refused(on_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hub_says(COMMIT, monkeypatch)
    _write_index(on_hub, {"model.norm.weight": "pytorch_model.bin"})
    assert "it names 'pytorch_model.bin' as weights" in _refusal("someone/some-model")


def test_a_run_keeps_to_the_commit_it_began_with(on_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _hub_says(COMMIT, monkeypatch)
    recipe = workplace(tmp_path / "work", on_hub)
    settings = ["model.base=someone/some-model", "train.steps=2", "train.checkpoint_every=1"]
    with pytest.raises(Killed):
        train_run(recipe, *settings, at_step=kill_at(1))
    asked_again = _hub_says(NEXT, monkeypatch)  # which this machine does not have
    record = train_run(recipe, *settings, resume=True)
    assert record.manifest.base_model_commit == COMMIT
    assert record.manifest.base_model_sha256 is None
    evaluate_run(record, load(recipe, *settings).recipe)
    export_adapter(record, load(recipe, *settings).recipe, tmp_path / "exported")
    assert (asked, asked_again) == ([None], [COMMIT] * 3)


def test_saving_an_adapter_asks_nobody(on_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself, PEFT looks on the hub for the vocabulary that the base model had."""
    _hub_says(COMMIT, monkeypatch)
    model = wrap(load_base(resolve_base(SETTINGS), SETTINGS), METHODS["lora"](target_modules=("q_proj", "lm_head")))
    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", lambda *_, **__: pytest.fail("the hub is asked"))
    save_adapter(model, tmp_path / "adapter")
    assert set(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) == set(
        get_peft_model_state_dict(model, save_embedding_layers=False)
    )
    assert load_adapter(load_base(resolve_base(SETTINGS), SETTINGS), tmp_path / "adapter")
