"""Which run goes on, where it lies, and what is not its own."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from malora_cli.errors import RunError
from malora_cli.results import RunRecord, writing
from train_runs import Killed, kill_at, load, same_weights, train_run, workplace

_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("resuming"), tiny_model)


@pytest.fixture(scope="module")
def whole(recipe: Path) -> RunRecord:
    """The run that nothing interrupted."""
    return train_run(recipe, "train.keep_checkpoints=9", "output.name=whole")


@pytest.fixture
def name() -> Iterator[str]:
    return (f"output.name=run-{number}" for number in _NUMBERS)


def _record(recipe: Path, override: str) -> RunRecord:
    loaded = load(recipe, override)
    return RunRecord(loaded.recipe.output.folder / loaded.name)


def _killed(recipe: Path, step: int, override: str) -> RunRecord:
    with pytest.raises(Killed):
        train_run(recipe, override, at_step=kill_at(step))
    return _record(recipe, override)


def _refusal(recipe: Path, *overrides: str, resume: bool = False) -> str:
    with pytest.raises(RunError) as caught:
        train_run(recipe, *overrides, resume=resume)
    return str(caught.value)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_killed_before_its_manifest_begins(
    resume: bool, recipe: Path, whole: RunRecord, name: Iterator[str]
) -> None:
    override = next(name)
    record = _record(recipe, override)
    record.path.mkdir()
    for path in (record.lock_path, record.writer_path, record.recipe_path):
        path.touch()
    assert same_weights(whole, train_run(recipe, override, resume=resume))
    assert not record.lock_path.exists()
    assert not record.writer_path.exists()


def test_a_run_that_another_process_trains_is_left_to_it(recipe: Path, name: Iterator[str]) -> None:
    override = next(name)
    record = _killed(recipe, 3, override)
    before = record.metrics.path.read_bytes()
    with writing(record):
        for resume in (False, True):
            message = _refusal(recipe, override, resume=resume)
            assert f"another process is writing this run (process {os.getpid()} on " in message
    assert record.metrics.path.read_bytes() == before


def test_a_run_goes_on_in_the_folder_that_its_recipe_lies_in(recipe: Path, whole: RunRecord, tmp_path: Path) -> None:
    record = _killed(recipe, 3, "output.name=moved")
    moved = RunRecord(record.path.rename(tmp_path / "elsewhere"))
    assert train_run(moved.recipe_path, resume=True).path == moved.path
    assert same_weights(whole, moved)
    assert not record.path.exists()
    message = _refusal(moved.recipe_path, "output.name=moved", resume=True)
    assert message.startswith(f"{record.path}: no run to resume"), "what is asked for goes before"


def test_a_checkpoint_of_another_run_is_refused(recipe: Path, whole: RunRecord, name: Iterator[str]) -> None:
    record = _killed(recipe, 3, next(name))
    foreign = record.checkpoints_dir / "step-0000004"
    shutil.copytree(whole.checkpoint(4), foreign)
    message = _refusal(record.recipe_path, resume=True)
    assert message == f"{foreign}: this checkpoint is another run's. Move it away, and resume again."


def test_what_was_measured_and_is_lost_is_told(recipe: Path, whole: RunRecord, name: Iterator[str]) -> None:
    record = _killed(recipe, 3, next(name))
    record.metrics.path.unlink()
    with pytest.warns(UserWarning, match="what was measured from step 0 to the checkpoint of step 2 is lost"):
        assert same_weights(whole, train_run(record.recipe_path, resume=True))
    assert [event.step for event in record.metrics.train()] == [3, 4, 5, 6]


def test_a_file_where_checkpoints_belong_is_in_the_way(recipe: Path, name: Iterator[str]) -> None:
    record = _killed(recipe, 1, next(name))
    shutil.rmtree(record.checkpoints_dir)
    record.checkpoints_dir.write_text("")
    message = _refusal(record.recipe_path, resume=True)
    assert message == f"{record.checkpoints_dir}: not a folder, and a run has one of this name. Move it away."
