"""A run folder from a stranger is safe to open: nothing in it is run, followed, unpickled or expanded without end."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from malora_cli.cli import main
from malora_cli.cli._common import read_recipe
from malora_cli.errors import RecipeError
from malora_cli.modeling import load_adapter, load_base, resolve_base
from malora_cli.recipe.files import read_document
from malora_cli.results import RunRecord, file_sha256
from malora_cli.results.contents import ADAPTER_FILES
from malora_cli.yaml_lines import MOST_BYTES, MOST_LEVELS, Origin, read_yaml
from report_runs import bare_run
from train_runs import Killed, kill_at, refused, rewrite, train_run, workplace


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a finished run ``whole`` and a killed one ``killed``, on a model that comes with code."""
    folder = tmp_path_factory.mktemp("strangers")
    model = folder / "model"
    shutil.copytree(tiny_model, model)
    rewrite(model / "config.json", lambda config: config.update(auto_map={"AutoModelForCausalLM": "code.Model"}))
    code = f"import pathlib\npathlib.Path({str(folder / 'ran')!r}).touch()\nfrom transformers import LlamaForCausalLM\n"
    (model / "code.py").write_text(f"{code}class Model(LlamaForCausalLM): pass\n")
    recipe = workplace(folder, model)
    train_run(recipe, "output.name=whole", "train.steps=2")
    with pytest.raises(Killed):
        train_run(recipe, "output.name=killed", at_step=kill_at(3))
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs, as a stranger would hand them over."""
    (place / "ran").unlink(missing_ok=True)
    shutil.copytree(place / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- code that comes with a model

_OPENING = {
    "eval": ["eval", "whole", "--limit", "1", "--tasks", "add"],
    "merge-export": ["merge-export", "whole", "--to", "lora", "--out", "exported"],
    "train --resume": ["train", "runs/killed/recipe.yaml", "--resume"],
    "train": ["train", "runs/whole/recipe.yaml", "output.name=again", "train.steps=1"],
    "train --dry-run": ["train", "runs/whole/recipe.yaml", "--dry-run"],
    "check": ["check", "runs/whole/recipe.yaml"],
    "compare": ["compare", "baselines", "runs/whole/recipe.yaml", "--methods", "lora,malora"],
}


@pytest.mark.parametrize("command", _OPENING)
def test_a_runs_own_recipe_never_lets_code_be_run(
    command: str, here: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("whole", "killed"):
        _ask_for_code(RunRecord(here / "runs" / name))
    before = sorted(here.rglob("*"))
    line = refused(_OPENING[command], capsys)
    assert "recipe.yaml:8: model.trust_remote_code: got true; the recipe of a run does not let Python code" in line
    assert line.endswith("add --trust-remote-code")
    assert str(place / "model") in line
    assert not (place / "ran").exists()
    assert sorted(here.rglob("*")) == before


def test_a_link_is_of_the_run_that_it_lies_in_and_of_the_run_that_it_leads_to(
    here: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = RunRecord(here / "runs" / "whole")
    _ask_for_code(record)
    (here / "to-a-run.yaml").symlink_to(record.recipe_path)
    assert "--trust-remote-code" in refused(["check", "to-a-run.yaml", "--no-step"], capsys)
    record.recipe_path.rename(here / "moved.yaml")
    record.recipe_path.symlink_to(here / "moved.yaml")
    assert "--trust-remote-code" in refused(["eval", "whole"], capsys)
    assert not (place / "ran").exists()


@pytest.mark.parametrize("command", ["eval", "train --resume"])
def test_whoever_is_at_the_prompt_can_and_is_told_whose_code_it_is(
    command: str, here: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(here / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("whole", "killed"):
        _ask_for_code(RunRecord(here / "runs" / name))
    with pytest.raises(SystemExit) as caught:
        main([*_OPENING[command], "--trust-remote-code"])
    assert caught.value.code == 0
    assert f"Python code that comes with {place / 'model'} is run" in capsys.readouterr().err
    assert (place / "ran").exists()


def _ask_for_code(record: RunRecord) -> None:
    """Have the recipe of a run say what a stranger would have it say."""
    recipe = record.recipe
    recipe["model"]["trust_remote_code"] = True
    recipe["output"]["folder"] = "runs"
    record.write_recipe(yaml.safe_dump(recipe, sort_keys=False))


# ---------------------------------------------------------------- a recipe that expands without end

_LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))])
_MERGED = "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40))])
_CHAIN = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [[[[*a{n - 1}]]]]" for n in range(1, 99))])
_BOMBS = {
    "aliases": (_LAUGHS, "more than 500,000 values, aliases written out"),
    "merges": (_MERGED, "more than 500,000 values, aliases written out"),
    "chain": (_CHAIN, "nested more than 64 deep"),
    "brackets": ("a: " + "[" * 100, "nested more than 64 deep"),
    "indents": ("\n".join(" " * n + "a:" for n in range(300)), "nested more than 64 deep"),
    "bytes": ("a: " + "x" * MOST_BYTES, "more than 5,000,000 bytes"),
}


@pytest.mark.parametrize("bomb", _BOMBS)
def test_a_recipe_that_is_too_much_is_one_line(bomb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, reason = _BOMBS[bomb]
    record = bare_run(tmp_path)
    record.write_recipe(text)
    for command in ("report", "eval", "merge-export"):
        assert reason in refused([command, str(record.path)], capsys)
    with pytest.raises(RecipeError, match=reason):
        read_document(record.recipe_path, "recipe")
    assert not record.report_path.exists()


def test_what_is_deep_and_large_but_within_the_limits_is_read() -> None:
    def read(text: str) -> object:
        return read_yaml(text, lambda line: Origin(str(line), Path())).data

    assert read("[" * MOST_LEVELS + "]" * MOST_LEVELS)
    assert read("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {d: *a}}") == {"a": [1, 2], "b": [[1, 2]] * 2, "c": {"d": [1, 2]}}


@pytest.mark.parametrize("text", ["&a [*a]", "a: &a {b: *a}", "- x", "a: !!python/name:os.system x", "a: 1\na: 2"])
def test_a_damaged_recipe_of_a_run_is_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = bare_run(tmp_path)
    record.write_recipe(text)
    assert "recipe.yaml: the recipe cannot be read (" in refused(["report", str(record.path)], capsys)


# ---------------------------------------------------------------- an adapter that is not what was trained


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def _spoil(file: Path) -> None:
    weights = load_file(file)
    weights[min(weights)][0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def _pickle(file: Path) -> None:
    torch.save({name: value.clone() for name, value in load_file(file).items()}, file)


def _configure(file: Path, **changes: object) -> None:
    rewrite(file.with_name("adapter_config.json"), lambda config: config.update(changes))


def _become_x_lora(file: Path) -> None:
    _configure(file, peft_type="XLORA", adapters={"0": "owner/adapter"}, base_model_name_or_path="owner/model")


_HARM: dict[str, Callable[[Path], None]] = {
    "flip": _flip,
    "nan": _spoil,
    "cut": _cut,
    "pickle": _pickle,
    "gone": Path.unlink,
    "x-lora": _become_x_lora,
    "other base": lambda file: _configure(file, base_model_name_or_path="owner/model"),
}


@pytest.mark.parametrize("harm", _HARM)
def test_an_adapter_that_is_not_what_was_written_is_one_line(
    harm: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = RunRecord(here / "runs" / "whole")
    checkpoint = record.checkpoint(2)
    for folder in (record.adapter_dir, checkpoint):
        _HARM[harm](folder / "adapter_model.safetensors")
    for arguments, folder in (
        (["eval", "whole"], record.adapter_dir),
        (["eval", "whole", "--step", "2"], checkpoint),
        (["merge-export", "whole", "--out", "out"], record.adapter_dir),
        (["merge-export", "whole", "--to", "lora", "--out", "out", "--step", "2"], checkpoint),
        (["compare", "runs", "whole", "whole"], record.adapter_dir),
    ):
        line = refused(arguments, capsys)
        shown = folder.relative_to(here)
        assert line.startswith(f"error: {shown}: the adapter is damaged (adapter_")
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("nan", "the weights of the adapter are not finite ("),
        ("cut", "adapter_model.safetensors cannot be read ("),
        ("pickle", "adapter_model.safetensors cannot be read ("),
        ("x-lora", "this adapter is of PEFT's type 'XLORA', and MALORA was trained"),
    ],
)
def test_where_a_manifest_has_no_hash_that_is_said_and_nothing_else_is_taken(
    harm: str, reason: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with runs of older versions, or of a stranger who took the hashes out."""
    record = RunRecord(here / "runs" / "whole")
    record.write_manifest(record.manifest.model_copy(update={"adapter_sha256": None}))
    _HARM[harm](record.adapter_dir / "adapter_model.safetensors")
    monkeypatch.setattr("torch.load", _never)
    for arguments in (["eval", "whole"], ["merge-export", "whole", "--out", "out"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        warning, line = capsys.readouterr().err.splitlines()
        assert caught.value.code == 2
        assert warning.startswith("warning: runs/whole: the manifest is of an older version")
        assert reason in line


def _never(*arguments: object, **options: object) -> None:
    raise AssertionError("something was unpickled")


def test_what_lies_beside_an_adapter_is_neither_followed_nor_exported(here: Path) -> None:
    record = RunRecord(here / "runs" / "whole")
    for name in ("adapter_model.bin", "adapter_more.safetensors", "training_args.bin"):
        (record.adapter_dir / name).write_bytes(b"cos\nsystem\n")
    (record.adapter_dir / "README.md").unlink()
    (record.adapter_dir / "README.md").symlink_to("/etc/hostname")
    with pytest.raises(SystemExit) as caught:
        main(["merge-export", "whole", "--out", "out"])
    assert caught.value.code == 0
    assert {path.name for path in (here / "out").iterdir()} == {*ADAPTER_FILES, "SHA256SUMS"}


def test_a_method_is_built_from_the_recipe_and_not_from_the_adapters_word(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RunRecord(here / "runs" / "whole")
    settings = read_recipe(record.recipe_path).recipe
    _configure(
        record.adapter_dir / "adapter_model.safetensors",
        target_modules=["lm_head"],
        base_model_name_or_path="owner/model",
    )
    monkeypatch.setattr("peft.PeftConfig.from_pretrained", _never)
    base = load_base(resolve_base(settings.model), settings.model)
    model = load_adapter(base, record.adapter_dir, settings.method)  # type: ignore[arg-type]
    assert "lm_head" not in model.active_peft_config.target_modules
    assert model.active_peft_config.base_model_name_or_path != "owner/model"


def test_hashes_are_of_files_that_are_on_disk_before_the_run_counts_as_finished(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    plain = os.fsync

    def fsync(file: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{file}").readlink().name)
        plain(file)

    monkeypatch.setattr(os, "fsync", fsync)
    record = train_run(place / "tiny.yaml", "output.name=flushed", "train.steps=1")
    files = record.manifest.adapter_sha256
    assert files == {name: file_sha256(record.adapter_dir / name) for name in ADAPTER_FILES}
    last = len(flushed) - 1 - flushed[::-1].index("adapter")
    assert set(ADAPTER_FILES) <= set(flushed[last - 4 : last])
    assert any(name.endswith(".tmp") for name in flushed[last:])  # the manifest that says so
