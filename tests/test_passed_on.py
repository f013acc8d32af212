"""What is passed on, and what is not: paths of one machine and values of variables stay out of runs and pages."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from conftest import write_mix, write_recipe
from malora_cli.cli import main
from malora_cli.cli._common import read_recipe
from malora_cli.results import RunRecord
from report_runs import page
from train_runs import load, refused, train_run, workplace


@pytest.fixture
def secret(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose rows lie where two variables say, in a folder of a telling name."""
    data = tmp_path / "elsewhere" / "s3cret"
    data.mkdir(parents=True)
    write_mix(data)
    (tmp_path / "project" / "s3cret").mkdir(parents=True)
    (data / "copy.train.jsonl").rename(tmp_path / "project" / "s3cret" / "copy.train.jsonl")
    mix = (data / "mix.yaml").read_text()
    mix = re.sub(r'"(\w+\.test)', r'"$PLACE/\1', re.sub(r'"(\w+\.train)', r'"${PLACE}/\1', mix))
    mix = mix.replace("${PLACE}/copy.train", "$NEAR/copy.train").replace("$PLACE/add.test", "$PLACE/a*d.test")
    (tmp_path / "project" / "mix.yaml").write_text(mix)
    monkeypatch.setenv("PLACE", str(data))
    monkeypatch.setenv("NEAR", "s3cret")
    monkeypatch.chdir(tmp_path / "project")
    return write_recipe(tmp_path / "project", tiny_model, tmp_path / "project" / "mix.yaml")


def test_variables_stay_variables_in_all_that_is_written_and_shown(
    secret: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "tiny.yaml", "train.steps=1", "output.folder=runs"])
    assert caught.value.code == 0
    captured = capsys.readouterr()
    record = RunRecord(Path("runs/tiny"))
    source = record.manifest.train_data["copy"].source
    assert source == f"{secret.parent}/$NEAR/copy.train.jsonl"
    assert record.manifest.test_data["add"].source == "$PLACE/a*d.test.jsonl"
    assert record.manifest.test_data["add"].also_trained == 0
    written = [path for path in record.path.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert record.report_path in written
    for text in [captured.out, captured.err, *(path.read_text() for path in written)]:
        assert "s3cret" not in text
    again = load(record.recipe_path, "output.name=again")
    assert train_run(record.recipe_path, "output.name=again").manifest.train_data == record.manifest.train_data
    assert again.recipe.mix == read_recipe(record.recipe_path).recipe.mix


@pytest.mark.parametrize(
    ("spoil", "shown"),
    [
        (lambda data: (data / "add.test.jsonl").write_text("{"), "$PLACE/add.test.jsonl:1: "),
        (lambda data: (data / "add.test.jsonl").write_text(""), "$PLACE/add.test.jsonl: the file is empty"),
        (lambda data: (data / "add.test.jsonl").unlink(), "$PLACE/a*d.test.jsonl: file or folder not found"),
        (lambda data: (data / "add.train.jsonl").unlink(), "${PLACE}/add.train.jsonl: file or folder not found"),
    ],
)
def test_errors_name_the_variable_and_not_its_value(
    spoil: Callable[[Path], None], shown: str, secret: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(secret.parents[1] / "elsewhere" / "s3cret")
    line = refused(["check", "tiny.yaml", "--no-step"], capsys)
    assert line.startswith(f"error: task 'add': {shown}")
    assert "s3cret" not in line


def test_the_value_of_a_variable_is_never_asked_for_elsewhere(
    secret: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("malora_cli.data.sources.load_dataset_builder", _never)
    monkeypatch.setenv("PLACE", "owner")
    with pytest.raises(SystemExit):
        main(["check", "tiny.yaml", "--no-step"])
    told = capsys.readouterr().err
    assert "$PLACE/copy.test.jsonl: file or folder not found" in told
    assert "owner" not in told
    source = '{path: "owner/$NEAR", split: train}'
    assert "owner/$NEAR: file or folder not found" in refused(
        [
            "check",
            "tiny.yaml",
            "--no-step",
            f"mix.tasks={{add: {{domain: d, train: {source}, test: {source}, "
            "format: prompt-completion, metric: exact-match}}",
        ],
        capsys,
    )


def test_a_page_holds_no_absolute_path(tmp_path: Path, tiny_model: Path) -> None:
    place = tmp_path / "place"
    record = train_run(workplace(place, tiny_model), "train.steps=1")
    source = page(record).source
    assert str(place) not in source
    assert str(tiny_model) not in source
    assert "copy.train.jsonl" in source
    shutil.copytree(record.path, tmp_path / "runs" / "moved")
    moved = RunRecord(tmp_path / "runs" / "moved")
    recipe = moved.recipe
    recipe["model"] |= {"base": "C:\\Users\\me\\model", "chat_template": "/home/me/chat.jinja"}
    recipe["mix"]["system"] = "/no_think"
    moved.write_recipe(yaml.safe_dump(recipe))
    text = page(moved).source
    assert not re.search(r"C:|Users|/home/me|(?<![<\w])/tmp/", text)
    assert str(place) not in text
    for kept in ("chat.jinja", "/no_think", "copy.train.jsonl"):
        assert kept in text


def _never(*arguments: object, **options: object) -> None:
    raise AssertionError("somebody was asked")
