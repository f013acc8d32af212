"""``malora eval`` as it is typed: which model, which rows, what it is compared with, and how it ends."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from malora_cli.cli import main
from malora_cli.errors import DataError
from malora_cli.evals.evaluate import _check_facts
from malora_cli.evals.metrics import METRICS
from malora_cli.results import EvalResult, RunRecord
from malora_cli.results.predictions import read_predictions
from test_lm_eval import task_file
from train_runs import rewrite, train_run, workplace


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a recipe, its mix and a run of it."""
    folder = tmp_path_factory.mktemp("eval")
    train_run(workplace(folder, tiny_model))
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> EvalResult:
    """What ``--json`` prints, and nothing else on standard output."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["eval", *arguments, "--json"])
    assert caught.value.code == code
    return EvalResult.model_validate_json(capsys.readouterr().out)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command ends with; warnings may stand before it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    *_, line = capsys.readouterr().err.splitlines()
    assert (caught.value.code, line[:7]) == (2, "error: ")
    return line


def newest(folder: Path) -> Path:
    return sorted(folder.glob("*.json"))[-1]


def test_json_is_what_is_kept(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluated(capsys, "--limit", "3")  # of the newest run
    assert EvalResult.load(newest(here / "runs" / "tiny" / "eval")) == result
    task = result.tasks["add"]
    assert task.against is not None
    assert task.difference is not None
    assert (task.rows, task.clusters, task.model.unread) == (3, 3, 0.0)
    assert task.model.bits_per_byte is not None
    assert task.difference.value == pytest.approx(task.model.score - task.against.score)
    assert (task.difference.wins + task.difference.ties + task.difference.losses) == 3
    assert task.model.low is not None
    assert task.model.high is not None
    assert task.model.low <= task.model.score <= task.model.high


def test_a_domain_names_its_tasks(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(evaluated(capsys, "tiny", "--tasks", "domain:words", "--limit", "1").tasks) == ["copy", "upper"]
    assert list(evaluated(capsys, "tiny", "--tasks", "add,domain:words", "--limit", "1").tasks) == [
        "copy",
        "upper",
        "add",
    ]
    assert len(evaluated(capsys, "tiny", "--tasks", "all", "--limit", "1").tasks) == 3
    line = refused(["eval", "tiny", "--tasks", "domain:wrods"], capsys)
    assert "unknown domain 'wrods'; did you mean 'words'?" in line


def test_a_model_is_evaluated_on_a_mix(here: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = evaluated(capsys, "tiny", "--limit", "3")
    alone = evaluated(capsys, str(tiny_model), "--mix", "mix.yaml", "--limit", "3")
    assert (alone.against, alone.mix, alone.step) == (None, "mix.yaml", 0)
    assert {name: task.model for name, task in alone.tasks.items()} == {
        name: task.against for name, task in whole.tasks.items()
    }
    assert newest(here / "runs" / "evals" / tiny_model.name).is_file()
    line = refused(["eval", str(tiny_model)], capsys)
    assert "run not found" in line
    assert "for a model add --mix MIX" in line
    line = refused(["eval", "smolm", "--mix", "mix.yaml"], capsys)
    assert "it cannot be loaded" in line


def test_an_exported_adapter_is_a_model_beside_its_base(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = evaluated(capsys, "tiny", "--limit", "3", "--tasks", "add")
    exported = evaluated(capsys, "runs/tiny/adapter", "--mix", "mix.yaml", "--limit", "3", "--tasks", "add")
    assert exported.tasks["add"].model == run.tasks["add"].model
    assert exported.tasks["add"].against == run.tasks["add"].against


def test_other_tasks_are_kept_apart_from_the_runs_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "other.yaml").write_text((here / "mix.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    before = RunRecord(here / "runs" / "tiny").evaluations()
    result = evaluated(capsys, "tiny", "--mix", "other.yaml", "--limit", "2")
    assert result.mix == "other.yaml"
    assert newest(here / "runs" / "tiny" / "eval" / "other").is_file()
    assert RunRecord(here / "runs" / "tiny").evaluations() == before


def test_rows_are_found_in_another_evaluation_by_what_was_asked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(capsys, "tiny", "--tasks", "add")
    file = newest(here / "runs" / "tiny" / "eval")
    lines = [json.dumps(row) for row in read_predictions(file)]
    predictions = file.with_name(file.name.removesuffix(".json") + ".predictions.jsonl")
    predictions.write_text("".join(f"{line}\n" for line in reversed(lines)), encoding="utf-8")
    result = evaluated(capsys, "tiny", "--tasks", "add", "--against", str(file), "--limit", "3")
    task = result.tasks["add"]
    assert result.against == "tiny"
    assert task.against == task.model
    assert task.difference is not None
    assert (task.difference.value, task.difference.p, task.difference.ties) == (0, 1, 3)
    line = refused(["eval", "tiny", "--tasks", "copy", "--against", str(file)], capsys)
    assert "4 of the 4 rows of task 'copy' are not in it, as row" in line
    assert "Evaluate both with the same tasks, mix and limit." in line
    assert evaluated(capsys, "tiny", "--tasks", "add", "--limit", "1", "--against", "tiny").against == "tiny"


@pytest.mark.parametrize("better", [True, False])
def test_the_last_line_of_a_gate_and_its_exit_code_agree(
    better: bool, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(capsys, "tiny", "--tasks", "copy", "eval.rows=null")
    file = newest(here / "runs" / "tiny" / "eval")
    predictions = file.with_name(file.name.removesuffix(".json") + ".predictions.jsonl")
    rows = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    for row in rows:  # the other one was right, or wrong, on all of them
        row["adapter"] = "no" if better else row["reference"]
    predictions.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    arguments = ["eval", "tiny", "--tasks", "copy", "eval.rows=null", "--against", str(file), "--gate"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    last = capsys.readouterr().out.splitlines()[-1]
    assert (caught.value.code or 0, last.split(",")[0]) == ((0, "gate: passed") if better else (1, "gate: failed")), (
        f"with {len(rows)} rows"
    )


def test_a_gate_needs_something_to_compare_with(
    here: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(["eval", str(tiny_model), "--mix", "mix.yaml", "--limit", "1", "--gate"], capsys)
    assert "nothing to compare with" in line


def test_shots_stand_in_front_of_the_base_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = evaluated(capsys, "tiny", "--tasks", "add", "--limit", "3")
    shown = evaluated(capsys, "tiny", "--tasks", "add", "--limit", "3", "--shots", "2")
    assert shown.against_name == "base, 2 shots"
    assert shown.tasks["add"].model == plain.tasks["add"].model
    assert shown.tasks["add"].against is not None
    assert plain.tasks["add"].against is not None
    assert shown.tasks["add"].against.loss != plain.tasks["add"].against.loss
    line = refused(["eval", "tiny", "--tasks", "add", "--shots", "99"], capsys)
    assert "99 solved rows are to be shown, and there are" in line
    line = refused(["eval", "tiny", "--tasks", "add", "--shots", "2", "--against", "tiny"], capsys)
    assert "--shots: they stand in front of the base, which --against replaces" in line


def test_solved_rows_of_another_harness_are_shown_to_the_base_alone(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    theirs = f"lm_eval:{task_file(tmp_path)}"
    task = evaluated(capsys, "tiny", "--tasks", theirs, "--limit", "3", "--shots", "1").tasks["lm_eval:tiny_arc"]
    assert task.difference is not None
    assert task.rows == 3


def test_stored_answers_are_scored_anew_into_another_folder(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = evaluated(capsys, "tiny", "--tasks", "add", "--limit", "2")
    after = evaluated(capsys, "tiny", "--tasks", "add", "--limit", "2", "--rescore", "--out", str(tmp_path / "new"))
    assert after.tasks == before.tasks


def test_an_interrupted_evaluation_says_how_to_go_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("malora_cli.evals.evaluate.evaluate_run", interrupt)
    with pytest.raises(SystemExit) as caught:
        main(["eval", "tiny"])
    assert caught.value.code == 130
    assert "interrupted: the same command goes on from here" in capsys.readouterr().err


def test_whose_code_is_run_with_a_model_is_said(
    here: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", str(tiny_model), "--mix", "mix.yaml", "--tasks", "none", "--trust-remote-code"]
    with pytest.raises(SystemExit):
        main(arguments)
    assert f"trust_remote_code: Python code that comes with {tiny_model} is run" in capsys.readouterr().err


def test_validation_rows_are_others_than_test_rows(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluated(capsys, "tiny", "--tasks", "add", "--split", "validation")
    assert (result.split, result.of_test_rows) == ("validation", False)
    asked = {row["prompt"] for row in read_predictions(newest(here / "runs" / "tiny" / "eval"))}
    evaluated(capsys, "tiny", "--tasks", "add")
    tested = {row["prompt"] for row in read_predictions(newest(here / "runs" / "tiny" / "eval"))}
    assert asked
    assert not asked & tested


def test_validation_rows_without_what_the_metric_wants_are_refused() -> None:
    rows = [{"facts": ""}]
    settings = SimpleNamespace(metric=METRICS["pass-at-k"](), columns={})
    task: Any = SimpleNamespace(name="code", settings=settings, validation=SimpleNamespace(rows=rows))
    with pytest.raises(DataError, match=r"^task 'code': its validation rows, .* have no 'tests'\. Name other rows"):
        _check_facts(task)
    settings.metric, settings.columns = METRICS["exact-match"](), {"cluster": "text"}
    with pytest.raises(DataError, match="have no 'cluster'"):
        _check_facts(task)
    rows[0]["facts"] = '{"cluster": 3}'
    _check_facts(task)


def test_tokens_at_once_are_a_setting(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = evaluated(capsys, "tiny", "--tasks", "add", "--limit", "2")
    assert evaluated(capsys, "tiny", "--tasks", "add", "--limit", "2", "--batch-tokens", "64").tasks == whole.tasks
    assert "eval.batch_tokens" in refused(["eval", "tiny", "--batch-tokens", "few"], capsys)


def test_the_table_is_written_as_csv(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluated(capsys, "tiny", "--limit", "2", "--csv", str(tmp_path / "t.csv"))
    with (tmp_path / "t.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["name"]) for row in rows] == [
        *(("task", name) for name in result.tasks),
        *(("domain", name) for name in result.domains()),
        ("all", "all domains"),
    ]
    assert float(rows[0]["model_score"]) == result.tasks["copy"].model.score
    assert float(rows[0]["difference_value"]) == result.tasks["copy"].gain
    line = refused(["eval", "tiny", "--limit", "1", "--csv", str(tmp_path / "no" / "t.csv")], capsys)
    assert "it cannot be written (folder not found)" in line
    line = refused(["eval", "tiny", "--limit", "1", "--csv", str(tmp_path)], capsys)
    assert "it cannot be written (a folder)" in line


def test_code_is_run_only_where_the_user_says_so(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(METRICS["exact-match"], "runs_code", True)  # as if it did
    line = refused(["eval", "tiny"], capsys)
    assert "task 'copy' is scored by running code that the model writes" in line
    assert "Add --allow-code, which runs it in a sandbox" in line


def test_an_evaluation_that_is_damaged_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(capsys, "tiny", "--tasks", "add", "--limit", "1", "--out", "elsewhere")
    file = newest(here / "elsewhere")
    rewrite(file, lambda result: result.pop("tasks"))
    line = refused(["eval", "tiny", "--tasks", "add", "--against", str(file)], capsys)
    assert f"{file.name}: the evaluation cannot be read" in line


def test_tasks_of_another_harness_stand_beside_our_own(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    theirs = f"lm_eval:{task_file(tmp_path)}"
    result = evaluated(capsys, "tiny", "--tasks", f"add,{theirs}", "--limit", "3")
    assert list(result.tasks) == ["add", "lm_eval:tiny_arc"]
    task = result.tasks["lm_eval:tiny_arc"]
    assert (task.domain, task.metric, task.rows) == ("lm_eval", "acc", 3)
    assert task.difference is not None
    assert task.model.low is not None
    asked = [row for row in read_predictions(newest(here / "runs" / "tiny" / "eval")) if row["task"] != "add"]
    assert [row["adapter_score"] for row in asked].count(1.0) == pytest.approx(3 * task.model.score)
    assert {len(row["adapter_choices"]) for row in asked} <= {2, 3, 4}
    assert list(evaluated(capsys, "tiny", "--tasks", theirs, "--limit", "2").tasks) == ["lm_eval:tiny_arc"]
    for option in (["--rescore"], ["--split", "validation"]):
        line = refused(["eval", "tiny", "--tasks", theirs, *option], capsys)
        assert f"{option[0]}: {theirs} is asked anew each time" in line
