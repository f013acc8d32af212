"""A project that was moved: its runs go on, are evaluated and exported where they lie now, and by hashes alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from malora_cli.cli import main
from malora_cli.errors import RunError
from malora_cli.places import follow, gone
from malora_cli.results import RunRecord
from train_runs import Killed, kill_at, refused, rewrite, train_run, workplace

LORA = "method={name: lora, r: 2}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with model, data and recipe, a finished run and one that was killed; nobody is left at its old place."""
    old = tmp_path_factory.mktemp("old") / "project"
    recipe = workplace(old, Path(shutil.copytree(tiny_model, old / "model")))
    train_run(recipe, LORA, "train.steps=2", "output.name=done")
    with pytest.raises(Killed):
        train_run(recipe, LORA, "train.steps=3", "output.name=killed", at_step=kill_at(2))
    return Path(shutil.move(old, tmp_path_factory.mktemp("new") / "deeper"))


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def test_a_moved_project_is_evaluated_exported_and_reported(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert run("eval", "runs/done", "--limit", "2") == 0
    assert run("merge-export", "runs/done") == 0
    assert run("report", "runs/done") == 0
    record = RunRecord(project / "runs" / "done")
    assert record.recipe["model"]["base"] == str(project / "model")
    assert list(gone(record.recipe)) == []


def test_a_moved_project_goes_on_by_the_runs_recipe_or_its_own(project: Path) -> None:
    killed = RunRecord(project / "runs" / "killed")
    rewrite(project / "tiny.yaml", lambda recipe: recipe["model"].update(base=str(project / "model")))
    rewrite(project / "tiny.yaml", lambda recipe: recipe["output"].update(folder=str(project / "runs")))
    again = RunRecord(shutil.copytree(killed.path, project / "runs" / "again"))
    own = train_run(project / "tiny.yaml", LORA, "train.steps=3", "output.name=again", resume=True)
    assert (own.path, own.manifest.folder) == (again.path, str(again.path))
    assert run("train", str(killed.recipe_path), "--resume") == 0
    assert killed.finished


def test_what_is_no_longer_there_is_named_with_what_to_do(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = RunRecord(shutil.copytree(project / "runs" / "done", tmp_path / "runs" / "alone"))
    lost = alone.recipe["model"]["base"]
    assert refused(["eval", str(alone.path)], capsys).endswith(
        f"model '{lost}': folder not found, and a hub id looks like owner/name. Put it back, or add to the "
        "command where it lies now: model.base=FOLDER or mix=FILE."
    )
    base = f"model.base={project / 'model'}"
    assert run("eval", str(alone.path), base) == 2
    *others, last = capsys.readouterr().err.splitlines()  # of every task one
    assert last.endswith(
        "train.jsonl: file or folder not found. Put it back, or add to the command where it "
        "lies now: model.base=FOLDER or mix=FILE."
    )
    assert len(others) == 2
    assert run("eval", str(alone.path), base, f"mix={project / 'mix.yaml'}", "--limit", "1") == 0
    assert refused(["eval", base], capsys).endswith(f"{base}: RUN must come before KEY=VALUE. Write RUN {base}.")
    line = refused(["eval", str(alone.path), base, "method.r=4"], capsys)
    assert "the recipe differs from the run's own in method.r (was 2, is 4)" in line


def test_another_base_in_its_place_is_refused(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by an evaluation and an export, whose numbers would be those of another model."""
    other = Path(shutil.copytree(project / "model", tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] + torch.ones(1)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    for command in ("eval", "merge-export"):
        arguments = [command, str(project / "runs" / "done"), f"model.base={other}", "--out", str(tmp_path / "out")]
        line = refused(arguments, capsys)
        assert line.endswith(
            f"model '{other}': this is not the base model that the run was trained on. Put that one back, or say "
            "where it lies: model.base=FOLDER."
        )
    recipe = RunRecord(shutil.copytree(project / "runs" / "killed", tmp_path / "killed")).recipe_path
    rewrite(tmp_path / "killed" / "manifest.json", lambda manifest: manifest.update(status="running"))
    with pytest.raises(RunError, match="no longer what this run began with: the base model"):
        train_run(recipe, f"model.base={other}", f"mix={project / 'mix.yaml'}", resume=True)


def test_paths_follow_the_run_only_where_they_have_to(tmp_path: Path) -> None:
    for name in ("a/data/here.jsonl", "b/data/here.jsonl", "b/data/gone.jsonl", "b/data/part-1.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = {"model": {"base": "owner/name", "chat_template": None}, "mix": {"tasks": {}}}
    paths = ["here.jsonl", "gone.jsonl", "lost.jsonl", "part-*.jsonl"]
    given["mix"]["tasks"] = {name: {"train": {"path": str(tmp_path / "a" / "data" / name)}} for name in paths}
    follow(given, tmp_path / "a" / "runs" / "x", tmp_path / "b" / "runs" / "x")
    found = [task["train"]["path"] for task in given["mix"]["tasks"].values()]
    assert found == [str(tmp_path / folder / "data" / name) for folder, name in zip("abab", paths, strict=True)]
    assert given["model"] == {"base": "owner/name", "chat_template": None}
    assert list(gone(given)) == [str(tmp_path / "a" / "data" / "lost.jsonl")]
