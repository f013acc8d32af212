"""A run folder from a stranger is safe to open: nothing in it is run, followed, unpickled or expanded without end."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from malora_cli.cli import main
from malora_cli.errors import RecipeError
from malora_cli.recipe.files import read_document
from malora_cli.results import RunRecord
from malora_cli.yaml_lines import MOST_BYTES, MOST_LEVELS, Origin, read_yaml
from report_runs import bare_run
from train_runs import Killed, kill_at, rewrite, train_run, workplace


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    [line] = capsys.readouterr().err.splitlines()
    assert (caught.value.code, line[:7]) == (2, "error: ")
    return line


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
    "compare": ["compare", "baselines", "runs/whole/recipe.yaml", "--methods", "malora"],
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
