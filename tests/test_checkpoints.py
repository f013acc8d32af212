"""Runs that are killed, resumed, refused or never begun, and what lies on the disk then."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from forked import forked
from malora_cli.errors import MaloraError, RunError
from malora_cli.results import RunRecord, RunStatus, checkpoint_name
from malora_cli.train import checkpoints
from malora_cli.train import run as run_module
from train_runs import Killed, adapter, kill_at, load, measured, rewrite, same_weights, train_run, workplace

SAFE = {".safetensors", ".json", ".md"}
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("checkpoints"), tiny_model)


@pytest.fixture(scope="module")
def whole(recipe: Path) -> RunRecord:
    """The run that nothing interrupted; its dropout is on."""
    assert load(recipe).recipe.method.lora_dropout == 0.05  # type: ignore[attr-defined]
    return train_run(recipe, "output.name=whole")


@pytest.fixture
def name() -> Iterator[str]:
    return (f"output.name=run-{number}" for number in _NUMBERS)


def _killed(recipe: Path, step: int, *overrides: str) -> RunRecord:
    """A run that was killed right after a step."""
    with pytest.raises(Killed):
        train_run(recipe, *overrides, at_step=kill_at(step))
    return _record(recipe, *overrides)


def _record(recipe: Path, *overrides: str) -> RunRecord:
    loaded = load(recipe, *overrides)
    return RunRecord(loaded.recipe.output.folder / loaded.name)


def _refusal(error: type[MaloraError], recipe: Path, *overrides: str, resume: bool = False) -> str:
    with pytest.raises(error) as caught:
        train_run(recipe, *overrides, resume=resume)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("step", [1, 2, 3, 6])
def test_a_killed_run_ends_as_if_nothing_had_been(step: int, recipe: Path, whole: RunRecord, name: Any) -> None:
    """Bit by bit; at step 1 there is no checkpoint yet, at 3 an evaluation came after the newest one.

    Half of a checkpoint does not count.
    """
    override = next(name)
    record = _killed(recipe, step, override)
    assert not record.finished
    assert not record.adapter_dir.exists()
    half = record.checkpoints_dir / f".writing-step-{step:07d}"
    half.mkdir(parents=True)
    (half / "adapter_model.safetensors").write_bytes(b"half")
    resumed = train_run(recipe, override, resume=True)
    assert same_weights(whole, resumed)
    assert measured(whole) == measured(resumed)
    assert (resumed.finished, resumed.manifest.steps) == (True, 6)
    assert sorted(path.name for path in record.checkpoints_dir.iterdir()) == ["step-0000004", "step-0000006"]


@pytest.mark.parametrize(
    "method",
    [
        "{name: lora, r: 4, lora_dropout: 0.5}",
        "{name: dora, r: 4}",
        "{name: hydralora, r: 2, num_experts: 4}",
        "{name: mixlora, r: 2, num_experts: 4, top_k: 2}",
    ],
)
def test_every_method_resumes_bit_by_bit(method: str, recipe: Path, name: Any) -> None:
    settings = [f"method={method}", "train.gradient_checkpointing=true", "train.steps=4"]
    one, two = next(name), next(name)
    unbroken = train_run(recipe, *settings, one)
    _killed(recipe, 3, *settings, two)
    assert same_weights(unbroken, train_run(recipe, *settings, two, resume=True))


def test_a_run_may_be_killed_again_and_again(recipe: Path, whole: RunRecord, name: Any) -> None:
    """Its time goes on, and its beginning stays."""
    override = next(name)
    record = _killed(recipe, 3, override)
    rewrite(record.path / "manifest.json", lambda manifest: manifest.update(created="2001-01-01T00:00:00+00:00"))
    trained = record.metrics.train()[-1].seconds
    for step in (3, 4, 5):
        with pytest.raises(Killed):
            train_run(recipe, override, at_step=kill_at(step), resume=True)
    resumed = train_run(recipe, override, resume=True)
    assert same_weights(whole, resumed)
    assert measured(whole) == measured(record)
    assert resumed.manifest.created.startswith("2001")
    seconds = [event.seconds for event in resumed.metrics]
    assert seconds == sorted(seconds)
    assert resumed.manifest.train_seconds >= seconds[-1] > trained


def test_a_process_that_dies_leaves_a_run_that_goes_on(
    recipe: Path, whole: RunRecord, name: Any, tmp_path: Path
) -> None:
    """As by SIGKILL: no handler runs, nothing is flushed."""
    override = next(name)
    ended = forked(
        lambda: train_run(recipe, override, at_step=lambda step: os._exit(9) if step == 5 else None), tmp_path
    )
    assert ended.code == 9, ended.out
    assert [path.name for path in checkpoints.checkpoints(_record(recipe, override).checkpoints_dir)] == [
        "step-0000002",
        "step-0000004",
    ]
    resumed = train_run(recipe, override, resume=True)
    assert same_weights(whole, resumed)
    assert measured(whole) == measured(resumed)


def test_a_run_is_finished_though_its_experts_cannot_be_analysed(
    recipe: Path, name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")

    monkeypatch.setattr(run_module, "analyse_experts", full)
    with pytest.warns(UserWarning, match=r"experts have in common cannot be told \(CUDA out of .* 2 GiB.\)$"):
        record = train_run(recipe, next(name), "train.steps=1")
    assert record.finished
    assert adapter(record)
    assert not record.experts_path.exists()


def test_only_the_adapter_is_saved_and_no_hub_is_asked(
    recipe: Path, name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for the size of its vocabulary, nor with the base's embeddings where the adapter stands on them."""

    def asked(*arguments: Any) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", asked)
    head = "method={name: lora, r: 2, target_modules: [lm_head]}"
    record = train_run(recipe, next(name), head, "train.steps=1")
    assert set(adapter(record)) == {f"base_model.model.lm_head.lora_{side}.weight" for side in "AB"}


def test_the_adapter_is_saved_again_if_the_run_died_over_it(recipe: Path, name: Any, whole: RunRecord) -> None:
    override = next(name)
    record = RunRecord(shutil.copytree(whole.path, _record(recipe, override).path))
    before = measured(record)
    rewrite(record.path / "manifest.json", lambda manifest: manifest.update(status=RunStatus.RUNNING, steps=0))
    (record.adapter_dir / "adapter_model.safetensors").write_bytes(b"half")
    resumed = train_run(recipe, override, resume=True)
    assert same_weights(whole, resumed)
    assert measured(resumed) == before
    assert (resumed.finished, resumed.manifest.steps) == (True, 6)


def test_a_checkpoint_appears_whole(recipe: Path, name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it is written, the one before it is still the newest."""
    override = next(name)

    def killed(scratch: Path, run_id: str | None) -> Path:
        if scratch.name.endswith("4"):
            raise Killed
        return commit(scratch, run_id)

    commit = checkpoints.commit
    monkeypatch.setattr(checkpoints, "commit", killed)
    with pytest.raises(Killed):
        train_run(recipe, override)
    folder = _record(recipe, override).checkpoints_dir
    assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(folder)] == [2]


def test_nothing_on_disk_is_a_pickle(whole: RunRecord) -> None:
    files = [path for path in whole.path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= SAFE | {".jsonl", ".yaml"}
    assert {path.suffix for path in whole.checkpoints_dir.rglob("*") if path.is_file()} <= SAFE
    for path in files:
        if path.suffix == ".safetensors":
            size = int.from_bytes(path.read_bytes()[:8], "little")
            json.loads(path.read_bytes()[8 : 8 + size])
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("keep", "expected"), [(1, [6]), (2, [4, 6]), (9, [2, 4, 6])])
def test_the_newest_checkpoints_are_kept(keep: int, expected: list[int], tmp_path: Path) -> None:
    for step in (2, 4, 6):
        (tmp_path / checkpoint_name(step)).mkdir()
    checkpoints.prune(tmp_path, newest=keep)
    assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(tmp_path)] == expected


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("train.learning_rate=0.5", "train.learning_rate"),
        ("train.seed=1", "train.seed"),
        ("train.micro_batch_size=2", "train.micro_batch_size"),
        ("method.r=2", "method.r"),
        ("mix.tasks.add.system=Hi", "mix.tasks.add.system"),
        ("mix.weighting=proportional", "mix.weighting"),
        ("model.dtype=bfloat16", "model.dtype"),
    ],
)
def test_another_recipe_is_refused_with_what_differs(override: str, path: str, recipe: Path, whole: RunRecord) -> None:
    rewrite(whole.path / "manifest.json", lambda manifest: manifest.update(status=RunStatus.RUNNING))
    try:
        message = _refusal(RunError, recipe, "output.name=whole", override, resume=True)
    finally:
        rewrite(whole.path / "manifest.json", lambda manifest: manifest.update(status=RunStatus.FINISHED))
    assert f"differs from the run's own in {path} (was " in message
    assert message.endswith("). Undo that, or start another run: output.name=NAME.")


def test_a_refusal_shows_both_values(recipe: Path, whole: RunRecord) -> None:
    rewrite(whole.path / "manifest.json", lambda manifest: manifest.update(status=RunStatus.RUNNING))
    try:
        changes = ["train.learning_rate=0.5", "method.r=2"]
        message = _refusal(RunError, recipe, "output.name=whole", *changes, resume=True)
    finally:
        rewrite(whole.path / "manifest.json", lambda manifest: manifest.update(status=RunStatus.FINISHED))
    assert "method.r (was 4, is 2), train.learning_rate (was 0.01, is 0.5)" in message


def test_a_run_may_be_made_longer_or_shorter_but_not_than_it_is(recipe: Path, name: Any) -> None:
    override = next(name)
    _killed(recipe, 3, override)
    message = _refusal(RunError, recipe, override, "train.steps=1", resume=True)
    assert "it has been trained for 2 steps already, and the recipe asks for 1. Set train.steps" in message
    assert not _record(recipe, override).finished
    longer = train_run(recipe, override, "train.steps=8", resume=True)
    assert longer.manifest.steps == 8
    assert [event.step for event in longer.metrics.train()] == list(range(1, 9))
    assert longer.metrics.train()[-1].learning_rate < longer.metrics.train()[-2].learning_rate


def test_how_a_run_is_watched_may_change(recipe: Path, whole: RunRecord, name: Any) -> None:
    override = next(name)
    _killed(recipe, 3, override)
    watched = [
        "train.log_every=2",
        "train.eval_every=1",
        "train.eval_rows=1",
        "train.keep_checkpoints=1",
        "eval.rows=2",
    ]
    resumed = train_run(recipe, override, *watched, resume=True)
    assert same_weights(whole, resumed)
    assert [event.step for event in resumed.metrics.train()] == [1, 2, 4, 6]
    assert [event.step for event in resumed.metrics.evals()] == [0, 3, 4, 5, 6]
    assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(resumed.checkpoints_dir)] == [6]


@pytest.mark.parametrize("split", ["train", "test"])
def test_other_rows_are_refused(split: str, tmp_path: Path, tiny_model: Path) -> None:
    recipe = workplace(tmp_path, tiny_model)
    _killed(recipe, 3)
    file = tmp_path / f"add.{split}.jsonl"
    file.write_text(file.read_text().replace("3", "4"))
    before = _record(recipe).metrics.path.read_bytes()
    what = {"train": "the training rows of 'add', the validation rows of 'add'", "test": "the test rows of 'add'"}[
        split
    ]
    assert f"no longer what this run began with: {what}." in _refusal(RunError, recipe, resume=True)
    assert _record(recipe).metrics.path.read_bytes() == before


def test_a_finished_run_is_not_resumed(recipe: Path, whole: RunRecord) -> None:
    message = _refusal(RunError, recipe, "output.name=whole", resume=True)
    assert message == f"{whole.path}: this run is finished. Evaluate it: malora eval {whole.path}"


def test_a_run_is_never_overwritten(recipe: Path, whole: RunRecord) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*")}
    message = _refusal(RunError, recipe, "output.name=whole")
    assert message.endswith("Go on with it by --resume, or take another name: output.name=whole-2")
    assert {path: path.stat().st_mtime_ns for path in whole.path.rglob("*")} == before
    (whole.path.parent / "whole-2").mkdir()
    assert _refusal(RunError, recipe, "output.name=whole").endswith("output.name=whole-3")


def test_nothing_to_resume(recipe: Path) -> None:
    assert "no run to resume. Leave --resume out" in _refusal(RunError, recipe, "output.name=nothing", resume=True)


def test_a_folder_that_holds_something_else_is_left_alone(recipe: Path, name: Any) -> None:
    override = next(name)
    _record(recipe, override).path.mkdir()
    (_record(recipe, override).path / "notes.txt").touch()
    assert "something else lies here. Remove it, or take another name" in _refusal(RunError, recipe, override)
    assert "Remove what lies there" in _refusal(RunError, recipe, override, resume=True)


def test_a_damaged_run_is_not_resumed(recipe: Path, name: Any) -> None:
    override = next(name)
    record = _killed(recipe, 3, override)
    record.recipe_path.unlink()
    assert "the recipe cannot be read" in _refusal(RunError, recipe, override, resume=True)


@pytest.mark.parametrize("read_only", [False, True])
def test_an_output_folder_that_cannot_be_written(
    read_only: bool, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    if read_only:  # which root does not heed
        monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    else:
        (tmp_path / "output").touch()
    why = "Permission denied" if read_only else "Not a directory"
    message = _refusal(RunError, recipe, f"output.folder={tmp_path / 'output' / 'runs'}")
    assert message.endswith(f": the run folder cannot be written ({why}). Set output.folder to another.")


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("mix.tasks.add.train=nope.jsonl", "task 'add': nope.jsonl: file or folder not found"),
        ("mix.tasks.add.columns.prompt=nope", "column not found: 'nope'"),
        ("model.base=./nope", "nope"),
        ("method.target_modules=[nope]", "nope"),
        ("train.report_to=[tensorboard]", "train.report_to: the package of 'tensorboard' is not installed. Install it"),
    ],
)
def test_bad_input_leaves_nothing_behind(
    override: str, error: str, recipe: Path, name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", list)
    named = next(name)
    assert error in _refusal(MaloraError, recipe, override, named)
    assert not _record(recipe, named).path.exists()
