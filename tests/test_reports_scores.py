"""Scores on the page as evaluations have them: intervals, what can be told apart, and answers that differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from malora_cli.errors import RunError
from malora_cli.reports import write_report
from malora_cli.reports.differing import ROWS, Differing, clipped
from malora_cli.results import EvalResult, RunRecord
from malora_cli.results.evaluation import Compared, Difference
from report_runs import TASKS, answer, bare_run, evaluation, judged, keep_answers, page


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    record = bare_run(tmp_path)
    judged().save(record.eval_dir / "a.json")
    return record


def with_task(result: EvalResult, name: str, **changes: object) -> EvalResult:
    task = result.tasks[name].model_copy(update=changes)
    return result.model_copy(update={"tasks": {**result.tasks, name: task}})


def test_every_score_has_its_interval_and_every_change_its_own(run: RunRecord) -> None:
    shown = page(run)
    assert shown.row("scores", "sums")[1:] == [
        *("0.0%* ±9.0", "50.0% ±9.0", "+50.0 ±10.0", "<0.001 50 / 50 / 0", "0.4% base 25.0%"),
        *("3.000 1.25 bits", "2.000 0.25 bits", "−1.000", "100", "exact-match"),
    ]
    assert shown.row("scores", "reverse_words")[3:5] == ["−20.0 ±10.0", "0.020 1 / 78 / 21"]
    labels = [attrs["aria-label"] for _, attrs in shown.tags if attrs.get("class") == "dumbbell"]
    assert "base 30.0% (22.0% to 39.0%), adapter 32.0% (24.0% to 41.0%)" in labels
    assert "standard error of a score" not in shown.text("scores")


def test_a_change_that_cannot_be_told_apart_is_grey_and_says_what_could_have_been_seen(run: RunRecord) -> None:
    shown = page(run)
    assert '<span class="even">+2.0</span>' in shown.source
    assert '<span class="up">+50.0</span>' in shown.source
    assert '<span class="down">−20.0</span>' in shown.source
    text = shown.text("scores")
    assert "Cannot be told apart from the base model, and grey: ●cipher (9.8 points). In brackets" in text
    nothing = Difference(value=0.0, p=1.0, p_holm=1.0, ties=100)
    with_task(judged(), "cipher", difference=nothing).save(run.eval_dir / "a.json")
    assert "●cipher (too few rows to find any)" in page(run).text("scores")


def test_the_headline_counts_only_what_can_be_told_apart(run: RunRecord) -> None:
    text = page(run).text("headline")
    assert "1 of 3 tasks gained, 1 lost, 1 cannot be told apart." in text
    assert "95% interval" not in text.split("gained")[0], "the mean over domains has none here"
    mean = Difference(value=0.21, low=-0.04, high=0.46, p=0.1)
    result = judged()
    overall = result.overall().model_copy(update={"difference": mean})
    result.with_averages(result.domains(), overall).save(run.eval_dir / "a.json")
    text = page(run).text("headline")
    assert "(+20.5 points, 95% interval −4.0 to +46.0) in the mean score over 2 domains, which cannot be told" in text


def test_answers_that_could_not_be_read_are_starred_from_a_tenth_on(run: RunRecord) -> None:
    text = page(run).text("scores")
    assert "* A tenth or more of the answers could not be read" in text
    assert "Answers that could not be read count as wrong." in text
    read = judged({"cipher": "strings"})
    read.save(run.eval_dir / "a.json")
    shown = page(run)
    assert len(shown.row("scores", "cipher")) == 10, "no column of zeros"
    assert "Every answer could be read." in shown.text("scores")
    assert "*" not in shown.text("scores")


def test_shots_and_clusters_are_told(run: RunRecord) -> None:
    with_task(judged(shots=3), "sums", clusters=71).save(run.eval_dir / "a.json")
    shown = page(run)
    assert "from 30.0% (3 shots) to" in shown.text("headline")
    assert "The base model had 3 solved training rows in front of each prompt, the adapter none." in shown.text(
        "scores"
    )
    assert [cell.strip() for cell in shown.rows["scores"][1][2:5]] == ["base, 3 shots", "adapter", "points"]
    assert shown.row("scores", "sums")[-2] == "100 in 71 clusters"


def test_what_became_of_generated_code(run: RunRecord) -> None:
    result = judged(sandbox="landlock")
    task = result.tasks["sums"]
    model = task.model.model_copy(update={"outcomes": {"passed": 1040, "timeout": 2}})
    with_task(result, "sums", model=model).save(run.eval_dir / "a.json")
    text = page(run).text("scores")
    assert "sums, programs that were run, in landlock: 1,040 passed, 2 timeout of the adapter." in text


def test_what_was_not_measured_is_a_dash(run: RunRecord) -> None:
    result = judged({"sums": "arithmetic"})
    task = result.tasks["sums"]
    assert task.against is not None
    sides = {"model": task.model, "against": task.against}
    bare = {name: scores.model_copy(update={"loss": None, "bits_per_byte": None}) for name, scores in sides.items()}
    with_task(result, "sums", **bare).save(run.eval_dir / "a.json")
    shown = page(run)
    assert shown.row("scores", "sums")[6:9] == ["–", "–", ""]
    assert "Held-out loss" not in shown.text("headline")


def test_what_is_compared_with_nothing_or_others_is_not_quoted(run: RunRecord) -> None:
    alone = {name: Compared(model=task.model) for name, task in judged().tasks.items()}
    later = {"created": "2027-01-01T00:00:00+00:00"}
    result = judged(**later)
    for name in alone:
        result = with_task(result, name, against=None, difference=None)
    result.model_copy(update={"averages": {}}).save(run.eval_dir / "b.json")
    judged(against="other", **later).save(run.eval_dir / "c.json")
    text = page(run).text("scores")
    assert "Evaluated 2026-01-02" in text
    assert "2 other evaluations" in text


# ---------------------------------------------------------------- answers that differ


def test_answers_that_differ_are_shown_with_what_was_asked_losses_first(run: RunRecord) -> None:
    keep_answers(
        run,
        [
            answer("sums", 4, 0, 1, base_unread=True),
            answer("sums", 5, 1, 1),
            answer("cipher", 6, 0.5, 0.25, adapter_outcome="timeout", reference=None, references=["one", "two"]),
        ],
    )
    text = page(run).text("answers")
    assert "Of 3 rows the adapter does 1 worse than the base model and 1 better. Here they are" in text
    lost = "●cipher row 7 asked question 6 right one two base, 0.5 said 0.5 adapter, 0.25 (timeout) said 0.25"
    won = "●sums row 5 asked question 4 right right base, 0 (could not be read) said 0 adapter, 1 said 1"
    assert f"{lost} {won}" in text
    assert "question 5" not in text


def test_rows_that_differ_are_spread_over_tasks_and_directions(run: RunRecord) -> None:
    lines = [answer("sums", row, 0, 1) for row in range(200)]
    lines += [answer("reverse_words", row, 0, 1) for row in range(2)]
    lines += [answer("cipher", row, 1, 0) for row in range(200)]
    keep_answers(run, lines)
    found = Differing.read(run.eval_dir / "a.json", TASKS)
    assert found is not None
    assert (found.worse, found.better, found.total) == (200, 202, 402)
    assert [row.task for row in found.rows[:6]] == ["cipher"] * 6
    assert [row.task for row in found.rows[6:]].count("reverse_words") == 2
    assert [row.number for row in found.rows[:6]] != [1, 2, 3, 4, 5, 6], "not those that come first"
    keep_answers(run, reversed(lines))
    assert Differing.read(run.eval_dir / "a.json", TASKS) == found, "the order of the file decides nothing"
    few = Differing.read(run.eval_dir / "a.json", ["reverse_words"])
    assert few is not None
    assert [row.task for row in few.rows] == ["reverse_words"] * 2


def test_one_direction_takes_the_place_of_the_other(run: RunRecord) -> None:
    keep_answers(run, [answer("sums", row, 0, 1) for row in range(50)] + [answer("sums", 60, 1, 0)] * 2)
    found = Differing.read(run.eval_dir / "a.json", TASKS)
    assert found is not None
    assert [row.adapter.score for row in found.rows] == [0, 0, *[1] * (ROWS - 2)]


@pytest.mark.parametrize("lines", [[], [answer("sums", 1, 1, 1)], [{"task": "sums", "prompt": "q", "base": "a"}]])
def test_nothing_that_differs_is_no_section(run: RunRecord, lines: list[dict[str, object]]) -> None:
    keep_answers(run, lines)
    assert "answers" not in page(run).texts
    (run.eval_dir / "a.predictions.jsonl").unlink()
    assert "answers" not in page(run).texts


def test_the_answers_are_those_of_the_evaluation_that_is_quoted(run: RunRecord) -> None:
    keep_answers(run, [answer("sums", 1, 0, 1, prompt="of the quoted")])
    judged({"sums": "arithmetic"}, created="2027-01-01T00:00:00+00:00").save(run.eval_dir / "b.json")
    keep_answers(run, [answer("sums", 1, 0, 1, prompt="of the other")], name="b")
    text = page(run).text("answers")
    assert "of the quoted" in text
    assert "of the other" not in text


def test_damaged_answers_are_one_clear_error(run: RunRecord) -> None:
    keep_answers(run, [answer("sums", 1, 0, 1)])
    with (run.eval_dir / "a.predictions.jsonl").open("a") as file:
        file.write('{"task": "su')
    with pytest.raises(RunError, match=r"a\.predictions\.jsonl: the predictions cannot be read"):
        write_report(run)


def test_long_answers_are_folded_cut_and_escaped(run: RunRecord) -> None:
    evil = "<script>alert(1)</script>\x1b[2J\ud800"
    long = f"{evil} start {'x' * 200_000} end {evil}"
    keep_answers(run, [answer("sums", row, 0, 1, prompt=long, base=long, adapter="") for row in range(12)])
    shown = page(run)
    assert run.report_path.stat().st_size < 150_000
    assert [tag for tag, _ in shown.tags].count("details") >= 24
    assert "<script" not in shown.source
    assert "\x1b" not in shown.source
    assert "[… 198,872 characters …]" in shown.text("answers")
    assert "adapter, 1 nothing" in shown.text("answers")


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    assert clipped("short") == "short"
    text = clipped("a" * 1000 + "b" * 1000)
    assert text == "a" * 840 + " [… 800 characters …] " + "b" * 360


def test_an_older_evaluation_looks_as_it_did(tmp_path: Path) -> None:
    record = bare_run(tmp_path)
    evaluation(TASKS).save(record.eval_dir / "a.json")
    shown = page(record)
    assert "2 of 3 tasks and 2 of 2 domains gained." in shown.text("headline")
    for word in ("±", "Holm", "interval", "unread", "bits", "told apart"):
        assert word not in shown.text("scores") + shown.text("headline"), word
