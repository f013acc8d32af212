"""The commands from Python: what `malora_cli.api` does, without a line on the terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict

from malora_cli.api import Recipe, Run, compare, evaluate, load, train
from malora_cli.cli._common import read_recipe
from malora_cli.errors import RecipeError, RunError
from malora_cli.evals.subject import Models
from malora_cli.results import Event
from train_runs import adapter, same_weights, train_run, workplace


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("api"), tiny_model)


@pytest.fixture(scope="module")
def run(recipe: Path) -> Run:
    return train(recipe, ["train.steps=4", "output.name=ours"])


def test_a_run_is_trained_as_the_command_does(recipe: Path, run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = []
    again = train(str(recipe), ["train.steps=4", "output.name=again"], on_event=events.append)
    assert capfd.readouterr().out == ""
    theirs = train_run(recipe, "train.steps=4", "output.name=theirs")
    assert same_weights(again._record, theirs)
    assert again.finished
    assert again.adapter == again.path / "adapter"
    assert {event.kind for event in events} == {"train", "eval"}
    rows = again.metrics()
    assert {row["task"] for row in rows} == {"copy", "upper", "add"}
    assert rows == Run(again.path).metrics()
    assert all(row["loss"] > 0 for row in rows if row["tokens"])


def test_a_recipe_is_read_overridden_and_trained(recipe: Path, tmp_path: Path) -> None:
    own = Recipe(recipe, {"train.steps": 2, "mix.tasks.add.max_rows": 9})
    assert (own.settings.train.steps, own.settings.mix.tasks["add"].max_rows) == (2, 9)
    assert own.as_dict()["train"]["steps"] == 2
    assert own.provenance["train.steps"] == "command line"
    other = own.override(["train.steps=1", "output.name=overridden"]).override({"train.seed": 7})
    assert (other.settings.train.steps, other.settings.train.seed, own.settings.train.steps) == (1, 7, 2)
    written = tmp_path / "written.yaml"
    written.write_text(other.to_yaml(), encoding="utf-8")
    assert Recipe(written).settings == other.settings
    trained = train(other, {"train.learning_rate": 1e-4})
    assert trained.path.name == "overridden"
    kept = Recipe(trained.path / "recipe.yaml").settings.train
    assert (kept.steps, kept.seed, kept.learning_rate) == (1, 7, 1e-4)
    assert "overridden" in repr(other)
    with pytest.raises(RecipeError, match=r"train\.stepz=3: unknown setting; did you mean 'steps'"):
        own.override({"train.stepz": 3})


def test_a_run_is_scored_and_reported(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run.scores() == []
    found = evaluate(run, tasks=["copy", "domain:sums"], limit=3)
    assert set(found.tasks) == {"copy", "add"}
    assert capfd.readouterr().out == ""
    assert [row["task"] for row in run.scores()] == list(found.tasks)
    for row in run.scores():
        assert row["rows"] == 3
        assert row["low"] <= row["score"] <= row["high"]
        assert row["base"] is not None
    assert run.report().read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_run_is_loaded_with_its_adapter(run: Run) -> None:
    model, tokenizer = load(run.path)
    ids = tokenizer("copy ab", return_tensors="pt").input_ids
    with torch.no_grad():
        ours = model(input_ids=ids).logits
        with model.disable_adapter():
            assert not torch.equal(model(input_ids=ids).logits, ours)


def test_an_adapter_is_loaded_as_it_was_saved_and_rounded_only_to_be_asked(recipe: Path) -> None:
    half = train(recipe, ["train.steps=1", "output.name=half", "model.dtype=bfloat16"])
    model, _ = load(half.path)
    saved = adapter(half._record)
    assert {weight.dtype for weight in saved.values()} == {torch.float32}
    kept = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert all(torch.equal(kept[name], weight) for name, weight in saved.items())
    asked = Models.of_run(half._record, read_recipe(str(half._record.recipe_path), []).recipe).computing
    assert {p.dtype for name, p in asked.named_parameters() if "malora_up" in name} == {torch.bfloat16}


def test_methods_are_compared(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    events: list[Event] = []
    lines: list[str] = []
    quick = ["train.steps=1", "train.eval_rows=1", "eval.rows=2", "output.folder=runs"]
    asked = {"methods": ["lora", "malora"], "seeds": [3], "rates": "none", "margin": 0.5}
    found = compare(recipe, quick, **asked, on_event=events.append, on_line=lines.append)
    assert [(it.method, [run.seed for run in it.runs]) for it in found.methods] == [("lora", [3]), ("malora", [3])]
    assert found.failures == []
    assert {event.kind for event in events} == {"train", "eval"}
    assert Path("runs/tiny.compare/report/index.html").is_file()
    trained = len(events)
    again = compare(Recipe(recipe, quick), **asked, on_event=events.append, on_line=lines.append)
    assert again.sentences == found.sentences
    assert len(events) == trained  # nothing is trained twice
    assert lines
    assert capfd.readouterr().out == ""
    with pytest.raises(RecipeError, match="did you mean 'malora'"):
        compare(recipe, quick, methods=["lora", "mallora"])


def test_what_is_wrong_is_raised(recipe: Path, run: Run) -> None:
    with pytest.raises(RunError, match="run not found"):
        Run("nowhere")
    with pytest.raises(RecipeError, match="unknown setting; did you mean 'steps'"):
        train(recipe, ["train.stepz=1"])
    with pytest.raises(RunError, match="exists already"):
        train(recipe, ["train.steps=4", "output.name=ours"])
    with pytest.raises(RecipeError, match="unknown task 'coppy'; did you mean 'copy'"):
        evaluate(run, tasks=["coppy"])


def test_the_import_is_light() -> None:
    code = "import sys, malora_cli.api; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
