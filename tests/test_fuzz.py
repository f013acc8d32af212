"""Broken recipes and run folders: whatever is done with them ends with 0 or 2 and a line, never an internal error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from malora_cli.cli import main
from malora_cli.errors import MaloraError
from mutations import attempt, broken_recipe, broken_run
from train_runs import load, train_run, workplace


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("fuzz"), tiny_model)


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """A finished and evaluated run, as small as runs are."""
    few = ["train.steps=1", "train.batch_size=3", "train.micro_batch_size=3", "train.eval_rows=1"]
    record = train_run(recipe, "output.name=whole", *few, "train.conflict_rows=1")
    assert attempt(main, "eval", str(record.path), "--limit", "1") == 0
    return record.path


@pytest.mark.parametrize("seed", range(100))
def test_a_broken_recipe_is_refused_in_lines(seed: int, recipe: Path, tmp_path: Path) -> None:
    path = broken_recipe(recipe, tmp_path / "recipe.yaml", seed)
    said = "used"
    try:
        load(path)
    except MaloraError as error:
        said = str(error)
    assert said.strip()


@pytest.mark.parametrize("seed", range(50))
def test_a_broken_run_is_read_or_refused_in_a_line(
    seed: int, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, arguments = broken_run(whole, tmp_path / "whole", seed)
    code = attempt(main, *arguments)
    captured = capsys.readouterr()
    assert code in (0, 2), (done, captured.err)
    told = [line for line in captured.err.splitlines() if not re.match(r"(base|adapter): \w+: \d+ rows? in", line)]
    assert code == 0 or told[0].startswith(("error: ", "warning: ")), (done, captured.err)
    assert "Traceback" not in captured.err
