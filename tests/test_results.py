"""What a run leaves on disk: written whole or not at all, read back exactly, and told in one line where damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from malora_cli.errors import RunError
from malora_cli.results import (
    EvalEvent,
    EvalResult,
    MetricsLog,
    RunRecord,
    RunStatus,
    Scores,
    TaskEval,
    TaskLoss,
    TrainEvent,
    file_sha256,
    find_run,
    read_json,
    runs_under,
    utc_now,
    write_json,
    write_text,
)
from run_records import manifest, run_record

LOSS = TaskLoss(nats=1.5, tokens=3, examples=2)


def _trained(step: int) -> TrainEvent:
    return TrainEvent(step=step, seconds=1.0, tasks={"a": LOSS}, learning_rate=0.1, tokens_per_second=5.0)


def _evaluated(step: int) -> EvalEvent:
    return EvalEvent(step=step, seconds=1.0, tasks={"a": LOSS}, expert_load={"a": {"layer 0": [0.25, 0.75]}})


def _evaluation(**tasks: tuple[str, float, float]) -> EvalResult:
    """An evaluation of tasks given as (domain, base score, adapter score); the loss is 1 - score."""
    return EvalResult(
        run="r",
        created=utc_now(),
        step=3,
        limit=None,
        seconds=1.0,
        tasks={
            name: TaskEval(
                domain=domain,
                metric="exact-match",
                rows=4,
                base=Scores(score=base, loss=1 - base),
                adapter=Scores(score=adapter, loss=1 - adapter),
            )
            for name, (domain, base, adapter) in tasks.items()
        },
    )


def test_events_come_back_as_they_were(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    assert list(log) == []
    events = [_evaluated(0), _trained(1), _trained(2), _evaluated(2)]
    for event in events:
        log.append(event)
    assert list(log) == events
    assert (log.train(), log.evals()) == (events[1:3], [events[0], events[3]])
    assert len(log.path.read_text().splitlines()) == 4


def test_the_pace_is_read_without_the_rest_of_the_log(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for event in (_evaluated(0), _trained(1), _trained(2).model_copy(update={"seconds_per_step": 0.25})):
        log.append(event)
    with log.path.open("a") as file:
        file.write('{"seconds_per_step": 0.75, "tasks": "never looked at"}\n{"seconds_per_st')
    assert log.pace() == 0.5, "the first has none, and the last is cut"
    log.path.write_text("{bad}\n" + log.path.read_text())
    with pytest.raises(RunError, match="the log's line 1 cannot be read"):
        log.pace()


@pytest.mark.parametrize(("step", "kept"), [(-1, 0), (0, 1), (1, 2), (2, 4), (9, 5)])
def test_a_resumed_run_takes_back_what_came_after(step: int, kept: int, tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    events = [_evaluated(0), _trained(1), _trained(2), _evaluated(2), _trained(3)]
    for event in events:
        log.append(event)
    log.rewind(step)
    assert list(log) == events[:kept]
    log.append(_trained(7))
    assert list(log) == [*events[:kept], _trained(7)]


def test_half_a_line_of_a_killed_run_does_not_count(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(_trained(1))
    log.append(_trained(2))
    whole = log.path.read_bytes()
    ends = whole.index(b"\n") + 1
    for cut in (ends + 1, ends + 20, len(whole) - 1):
        log.path.write_bytes(whole[:cut])
        assert list(log) == [_trained(1)]
    log.rewind(1)
    log.append(_trained(2))
    assert log.path.read_bytes() == whole


def test_half_a_character_of_a_killed_run_does_not_count(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(_trained(1))
    with log.path.open("ab") as file:
        file.write('{"tasks": {"ü'.encode()[:-1])
    assert list(log) == [_trained(1)]


@pytest.mark.parametrize("line", [b"{bad}\n", b'{"kind": "train"}\n', b'{"kind": "other", "step": 1}\n', b"\xff\n"])
def test_a_damaged_line_is_told_with_its_number(line: bytes, tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(_trained(1))
    with log.path.open("ab") as file:
        file.write(line)
    log.append(_trained(3))
    with pytest.raises(RunError, match="the log's line 2 cannot be read") as caught:
        list(log)
    assert str(caught.value).startswith(str(log.path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tail", [b"\0" * 50, b"\0" * 50 + b"\n", b"\0" * 9 + b"}\n\0\n", b'{"kind": "train"}\n', b"{bad}\n{"]
)
def test_a_damaged_end_is_told_and_what_is_whole_is_kept(tail: bytes, tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(_trained(1))
    log.append(_trained(2))
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + tail)
    if b"\n" in tail:
        with pytest.warns(UserWarning, match=rf"{log.path}: the end of the log is damaged, from line 3 on"):
            assert list(log) == [_trained(1), _trained(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.rewind(2)
    assert log.path.read_bytes() == whole


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = MetricsLog(tmp_path / "metrics.jsonl")
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        log.append(_trained(1))
    assert caught.value.filename == str(log.path)


def test_what_is_no_number_is_not_recorded() -> None:
    for nats in (float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            TaskLoss(nats=nats, tokens=1, examples=1)


def test_loss_is_nats_a_token() -> None:
    assert LOSS.loss == 0.5
    assert TaskLoss(nats=0, tokens=0, examples=0).loss is None


def test_standard_error_on_known_numbers() -> None:
    # loss = 6/4; residuals 2-1.5, 4-4.5 -> spread 0.5; sqrt(0.5 * 2/1) / 4
    loss = TaskLoss.of_examples([(2.0, 1), (4.0, 3)])
    assert (loss.nats, loss.tokens, loss.examples, loss.stderr_nats) == (6.0, 4, 2, 0.25)
    assert TaskLoss.of_examples([(2.0, 1)]).stderr_nats is None
    # With one token each it is that of a mean.
    values = [0.3, 1.1, 0.7, 2.0, 0.1]
    expected = np.std(values, ddof=1) / np.sqrt(5)
    assert TaskLoss.of_examples([(value, 1) for value in values]).stderr_nats == pytest.approx(expected)


def test_standard_error_is_that_of_a_bootstrap() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 12, 400)
    nats = tokens * rng.gamma(2.0, 0.5, 400)
    drawn = rng.integers(0, 400, (4000, 400))
    spread = (nats[drawn].sum(1) / tokens[drawn].sum(1)).std()
    stderr = TaskLoss.of_examples(list(zip(nats.tolist(), tokens.tolist(), strict=True))).stderr_nats
    assert stderr == pytest.approx(spread, rel=0.05)


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 40)), min_size=1, max_size=20))
def test_sums_of_examples(examples: list[tuple[float, int]]) -> None:
    loss = TaskLoss.of_examples(examples)
    assert loss.nats == sum(nats for nats, _ in examples)
    assert loss.tokens == sum(tokens for _, tokens in examples)
    assert loss.stderr_nats is None or loss.stderr_nats >= 0


def test_averages_are_over_tasks_then_over_domains() -> None:
    result = _evaluation(a=("words", 0.0, 0.5), b=("words", 0.5, 1.0), c=("sums", 0.25, 0.0))
    assert {name: (it.against.score, it.model.score) for name, it in result.domains().items() if it.against} == {
        "words": (0.25, 0.75),
        "sums": (0.25, 0.0),
    }
    base, adapter = result.overall().against, result.overall().model
    assert base is not None
    assert (base.score, adapter.score) == (0.25, 0.375)  # over the three tasks it would be 0.5
    assert (base.loss, adapter.loss) == (0.75, 0.625)


def test_an_evaluation_comes_back_with_its_averages_spelled_out(tmp_path: Path) -> None:
    result = _evaluation(a=("words", 0.0, 0.5), c=("sums", 0.25, 0.0))
    result.save(tmp_path / "eval" / "x.json")
    written = read_json(tmp_path / "eval" / "x.json")
    assert written["averages"]["all domains"]["model"]["score"] == 0.25
    assert written["averages"]["words"]["against"]["loss"] == 1.0
    read = EvalResult.load(tmp_path / "eval" / "x.json")
    assert (read.tasks, read.domains(), read.overall()) == (result.tasks, result.domains(), result.overall())


def test_an_evaluation_of_an_older_version_is_read(tmp_path: Path) -> None:
    pair = {"base": {"score": 0.0, "loss": 2.0}, "adapter": {"score": 0.5, "loss": 1.0}}
    task = {"domain": "d", "metric": "exact-match", "rows": 4, "sample": None, **pair}
    old = {"run": "r", "created": "now", "step": 3, "limit": None, "seconds": 1.0, "tasks": {"t": task}}
    write_json(tmp_path / "1.json", {**old, "averages": {"d": pair, "all domains": pair}})
    read = EvalResult.load(tmp_path / "1.json")
    assert read.against_base
    assert (read.tasks["t"].model, read.tasks["t"].against) == (Scores(score=0.5, loss=1), Scores(score=0, loss=2))
    assert read.overall().gain == 0.5


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"run": "r"}', '{"averages": {}}', b"\xff"])
def test_a_damaged_evaluation_names_its_file(content: str | bytes, tmp_path: Path) -> None:
    record = run_record(tmp_path, "r")
    _evaluation(a=("x", 0, 1)).save(record.eval_dir / "1.json")
    (record.eval_dir / "2.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match="the evaluation cannot be read") as caught:
        record.evaluations()
    assert str(caught.value).startswith(str(record.eval_dir / "2.json"))
    assert "\n" not in str(caught.value)


def test_evaluations_come_in_order_of_time(tmp_path: Path) -> None:
    record = run_record(tmp_path, "r")
    assert record.evaluations() == []
    results = [_evaluation(a=("x", 0, 1)).model_copy(update={"created": f"2025-01-0{day}"}) for day in (3, 1, 2)]
    for name, result in zip("abc", results, strict=True):
        result.save(record.eval_dir / f"{name}.json")
    write_text(record.eval_dir / "a.predictions.jsonl", "{}\n")
    assert [result.created for result in record.evaluations()] == ["2025-01-01", "2025-01-02", "2025-01-03"]


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "runs" / "r")
    assert not record.exists
    assert not record.finished
    written = manifest(status=RunStatus.RUNNING)
    record.write_manifest(written)
    assert (record.exists, record.finished, record.manifest) == (True, False, written)
    with pytest.raises(RunError, match="not finished") as caught:
        record.require_finished()
    assert f"malora train {record.recipe_path} --resume" in str(caught.value)
    record.write_manifest(written.model_copy(update={"status": RunStatus.FINISHED}))
    record.require_finished()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"status": "running"}', b"\xff"])
def test_a_damaged_manifest_is_one_line(content: str | bytes, tmp_path: Path) -> None:
    record = run_record(tmp_path, "r")
    (record.path / "manifest.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (lambda: record.manifest, lambda: record.finished):
        with pytest.raises(RunError, match="the manifest cannot be read") as caught:
            read()
        assert str(caught.value).startswith(str(record.path / "manifest.json"))
        assert "\n" not in str(caught.value)


def test_a_folder_without_a_manifest_is_norun_record(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        _ = RunRecord(tmp_path).manifest


@pytest.mark.parametrize("content", [None, "", "- 1", "a: [", b"\xff"])
def test_a_damaged_recipe_is_one_line(content: str | bytes | None, tmp_path: Path) -> None:
    record = run_record(tmp_path, "r")
    if content is not None:
        record.recipe_path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match="the recipe cannot be read") as caught:
        _ = record.recipe
    assert str(caught.value).startswith(str(record.recipe_path))
    assert "\n" not in str(caught.value)


def test_runs_are_found_by_path_by_name_or_as_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    old, new = run_record(runs, "old"), run_record(runs, "new")
    (runs / "no-run").mkdir()
    (runs / "file").write_text("")
    for record, when in ((old, 1_000_000), (new, 2_000_000)):
        os.utime(record.path / "manifest.json", (when, when))
    _evaluation(a=("x", 0, 1)).save(old.eval_dir / "x.json")  # an evaluated run is no newer for it
    assert [record.name for record in runs_under(runs)] == ["new", "old"]
    assert find_run(None, runs).path == new.path
    assert find_run(Path("old"), runs).path == old.path
    assert find_run(old.path, tmp_path / "elsewhere").path == old.path
    monkeypatch.chdir(old.path)
    assert find_run(Path(), runs).name == "old"


def test_a_run_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no runs found") as caught:
        find_run(None, tmp_path / "nowhere")
    assert "malora train" in str(caught.value)
    run_record(tmp_path, "r")
    with pytest.raises(RunError, match=r"^x: run not found"):
        find_run(Path("x"), tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "x.json"
    write_json(path, {"old": "ü"})
    assert path.read_text(encoding="utf-8") == '{\n  "old": "ü"\n}\n'

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for moment in ("os.fsync", "pathlib.Path.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(moment, killed)
            with pytest.raises(KeyboardInterrupt):
                write_json(path, {"new": 1})
        assert read_json(path) == {"old": "ü"}
    write_json(path, {"new": 2})
    assert read_json(path) == {"new": 2}
    assert list(path.parent.iterdir()) == [path]


def test_json_stays_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", float("nan"))
    assert read_json(tmp_path / "x.json") == 1


def test_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_the_log_is_plain_json_lines(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(_trained(1))
    assert json.loads(log.path.read_text()) == {
        "kind": "train",
        "step": 1,
        "seconds": 1.0,
        "tasks": {"a": {"nats": 1.5, "tokens": 3, "examples": 2}},
        "learning_rate": 0.1,
        "tokens_per_second": 5.0,
    }
