"""Training measures and chooses by validation rows alone: of test rows it knows what the manifest says."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

import malora_cli
from exports import export_lora
from malora_cli.cli._common import recipe_of_run
from malora_cli.data.splits import Split
from malora_cli.data.tasks import Task, load_tasks
from malora_cli.errors import RecipeError, RunError
from malora_cli.evals.evaluate import Wanted, evaluate_run
from malora_cli.reports.view import RunView
from malora_cli.results import RunRecord
from malora_cli.train import checkpoints, materials
from train_runs import Killed, kill_at, load, measured, rewrite, same_weights, train_run, workplace

_NUMBERS = itertools.count()
#: All that goes by what is measured on the way.
CHOOSING = [
    *("train.steps=10", "train.eval_every=2", "train.checkpoint_every=2", "train.keep_checkpoints=1"),
    *("train.keep_best=1", "train.keep_best_of_tasks=true", "train.conflict_rows=4", "train.learning_rate=0.1"),
    *("remedies.patience.evaluations=2", "remedies.bandit.every=2"),
]


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    return workplace(tmp_path, tiny_model)


def _name() -> str:
    return f"output.name=run-{next(_NUMBERS)}"


class Sealed(Split):
    """Test rows of which only their number, their lengths and their hash may be known."""

    def _closed(self, *_: Any, **__: Any) -> NoReturn:
        raise AssertionError("test rows are read")

    rows = texts = property(_closed)  # type: ignore[assignment]
    examples = sample = lengths = longest_rows = source_rows = _closed  # type: ignore[assignment]


def _sealed(tasks: Sequence[Task]) -> Iterator[Task]:
    for task in tasks:
        test = Sealed(**{field.name: getattr(task.test, field.name) for field in fields(Split)})
        yield replace(task, test=test)


def test_training_reads_no_test_row(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(materials, "load_tasks", lambda *args, **kwargs: [*_sealed(load_tasks(*args, **kwargs))])
    with pytest.raises(AssertionError, match="test rows are read"):
        materials.gather(load(recipe).recipe).tasks[0].test.examples([0], 0)
    name = _name()
    with pytest.raises(Killed):
        train_run(recipe, *CHOOSING, name, at_step=kill_at(5))
    record = train_run(recipe, *CHOOSING, name, resume=True)
    assert record.finished
    assert {event.kind for event in record.metrics} == {"train", "eval", "conflict"}


def test_another_test_row_changes_nothing_of_training(recipe: Path) -> None:
    one = train_run(recipe, *CHOOSING, _name())
    path = recipe.parent / "add.test.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({"question": "why?", "answer": "none of it"}), *lines[1:]]) + "\n")
    two = train_run(recipe, *CHOOSING, _name())
    assert one.manifest.test_data["add"].sha256 != two.manifest.test_data["add"].sha256
    assert one.manifest.validation_data == two.manifest.validation_data
    assert measured(one) == measured(two)
    kept = [[path.name for path in checkpoints.checkpoints(record.checkpoints_dir)] for record in (one, two)]
    assert kept[0] == kept[1]
    assert same_weights(one, two)


def test_no_code_but_that_of_data_and_evaluations_reads_test_rows() -> None:
    root = Path(malora_cli.__file__).parent
    reading = re.compile(
        r"\.test\.(?:examples|rows|texts|sample|encoded|lengths|longest_rows|source_rows)\b|, \w+\.test[,)]"
    )
    found = {
        path.relative_to(root).parts[0]
        for path in root.rglob("*.py")
        if reading.search(path.read_text(encoding="utf-8")) and path.name != "run.py"  # its manifest has their hash
    }
    assert found <= {"data", "evals", "doctor"}  # which looks whether their files are there


@pytest.mark.parametrize("choosing", ["train.keep_best=1", "train.keep_best_of_tasks=true", "remedies.patience={}"])
def test_nothing_is_chosen_where_there_are_no_rows_to_choose_by(choosing: str, recipe: Path) -> None:
    setting = re.split(r"=", choosing)[0]
    none = rf"^{setting}: goes by the loss on validation rows, and there are none of 'copy', 'upper', 'add'\. Set mix"
    with pytest.raises(RecipeError, match=none):
        materials.gather(load(recipe, choosing, "mix.validation=null").recipe)
    (recipe.parent / "few.jsonl").write_text('{"question": "1", "answer": "1"}\n' * 9)
    few = f"mix.tasks.add.train={recipe.parent / 'few.jsonl'}"
    with (
        pytest.warns(UserWarning, match="spared"),
        pytest.raises(RecipeError, match=r"there are none of 'add'\. Name rows as"),
    ):
        materials.gather(load(recipe, choosing, few).recipe)
    with pytest.warns(UserWarning, match="spared"):
        assert materials.gather(load(recipe, few).recipe).tasks


def test_without_validation_rows_nothing_is_measured_on_the_way(recipe: Path, tmp_path: Path) -> None:
    record = train_run(recipe, "mix.validation=null", "train.conflict_rows=2", _name())
    assert (record.metrics.evals(), record.manifest.validation_data) == ([], {})
    assert any(event.kind == "conflict" for event in record.metrics)
    assert export_lora(record, recipe_of_run(record, [], trust=False), tmp_path / "lora", gates="mix") == []


def test_a_run_whose_validation_rows_have_changed_does_not_go_on(recipe: Path) -> None:
    own = recipe.parent / "own.jsonl"
    own.write_text('{"question": "1+1=", "answer": "2"}\n' * 2)
    settings = [_name(), f"mix.tasks.add.validation={own}"]
    with pytest.raises(Killed):
        train_run(recipe, *settings, at_step=kill_at(4))
    own.write_text('{"question": "1+1=", "answer": "3"}\n' * 2)
    with pytest.raises(RunError, match="no longer what this run began with: the validation rows of 'add'"):
        train_run(recipe, *settings, resume=True)


def _of_before(record: RunRecord) -> RunRecord:
    """The run as a version without validation rows would have left it."""

    def forget(recipe: dict[str, Any]) -> None:
        del recipe["mix"]["validation"]
        for task in recipe["mix"]["tasks"].values():
            del task["validation"]

    data = record.recipe
    forget(data)
    record.write_recipe(json.dumps(data))
    rewrite(record.manifest_path, lambda manifest: manifest.pop("validation_data"))
    return record


def test_a_run_of_before_is_evaluated_and_reported_but_does_not_go_on(
    recipe: Path, tmp_path: Path, tiny_model: Path
) -> None:
    record = _of_before(train_run(recipe, _name()))
    assert RunView.read(record).watched == "loss on test rows"
    own = recipe_of_run(record, [f"model.base={tiny_model}"], trust=False)
    assert own.mix.validation is None
    assert set(evaluate_run(record, own, Wanted(limit=2)).tasks) == {"copy", "upper", "add"}
    assert export_lora(record, own, tmp_path / "lora", gates="task:add") == []
    rewrite(record.manifest_path, lambda manifest: manifest.update(status="running"))
    with pytest.raises(RunError, match="begun by an older version, which trained on what are validation rows now"):
        train_run(record.recipe_path, resume=True)
