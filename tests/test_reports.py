"""What each section of a report says about a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from malora_cli.errors import RunError
from malora_cli.reports import RunView, write_report
from malora_cli.reports.section import SECTIONS
from malora_cli.reports.sections.experts import distance, from_uniform
from malora_cli.reports.sections.settings import flat
from malora_cli.results import (
    Change,
    EvalEvent,
    NotedRows,
    RunRecord,
    RunStatus,
    Scores,
    TaskData,
    TaskEval,
    TrainEvent,
    change,
    imbalance,
)
from report_runs import (
    HELD_OUT,
    TASKS,
    Page,
    bare_run,
    conflict,
    evaluation,
    full_run,
    held_out,
    loss,
    manifest,
    page,
    training,
)


@pytest.fixture
def bare(tmp_path: Path) -> RunRecord:
    return bare_run(tmp_path)


@pytest.fixture
def full(tmp_path: Path) -> RunRecord:
    return full_run(tmp_path)


def test_the_page_lies_in_the_run_and_has_every_section(full: RunRecord) -> None:
    path = write_report(full)
    assert path == full.path / "report" / "index.html"
    assert list(path.parent.iterdir()) == [path], "no scratch file is left"
    order = [
        "headline",
        "scores",
        "answers",
        "losses",
        "seesaw",
        "conflict",
        "remedies",
        "experts",
        "entropy",
        "similarity",
        "balance",
        "mixture",
        "settings",
        "reproduce",
    ]
    assert list(Page(path.read_text(encoding="utf-8")).texts) == order
    assert set(SECTIONS) == set(order)


def test_headline_says_what_was_gained(full: RunRecord) -> None:
    text = page(full).text("headline")
    # arithmetic 0 -> 50%, strings 20% -> 55%: their means are 10% and 52.5%.
    assert "After 100 steps on 3 tasks, malora took tiny from 10.0% to 52.5% (+42.5 points)" in text
    assert "2 of 3 tasks and 2 of 2 domains gained." in text
    assert "strings 20.0% → 55.0% +35.0" in text
    assert "2.5 M" in text
    assert "2.44% of all" in text
    assert "6 min 12 s" in text
    assert "malora eval" not in text


def test_a_score_that_stays_is_no_gain(bare: RunRecord) -> None:
    same = Scores(score=0.25, loss=1.0)
    task = TaskEval(domain="strings", metric="exact-match", rows=4, base=same, adapter=same)
    evaluation({}).model_copy(update={"tasks": {"cipher": task}}).save(bare.eval_dir / "a.json")
    text = page(bare).text("headline")
    assert "from 25.0% to 25.0% (0.0 points)" in text
    assert "0 of 1 task and 0 of 1 domain gained." in text


def test_scores_name_tasks_domains_and_the_overall_mean(full: RunRecord) -> None:
    shown = page(full)
    assert shown.row("scores", "cipher")[1:] == [
        *("30.0%", "20.0%", "−10.0", "3.000", "1.500", "−1.500", "100", "exact-match"),
    ]
    assert shown.row("scores", "strings")[1:4] == ["20.0%", "55.0%", "+35.0"]
    assert shown.row("scores", "All domains")[1:4] == ["10.0%", "52.5%", "+42.5"]
    assert "on all rows a task" in shown.text("scores")
    assert "at most 5.0 points" in shown.text("scores")  # 0.5 / sqrt(100)


def test_scores_say_which_rows_were_trained_on(full: RunRecord) -> None:
    manifest = full.manifest
    told = {"cipher": {"also_trained": 28, "shares_words": 30}, "strings": {"also_trained": 0, "shares_words": 5}}
    changed = {name: data.model_copy(update=told.get(name, {})) for name, data in manifest.test_data.items()}
    full.write_manifest(manifest.model_copy(update={"test_data": changed}))
    shown = page(full)
    assert "100 (35% also trained)" in " ".join(shown.row("scores", "cipher"))
    text = shown.text("scores")
    assert (
        "cipher: 28 of its 80 test rows are also training rows, so its score is too good by what was memorised." in text
    )
    assert text.count("also train") == 2
    assert "Test rows of 1 task are also training rows" in shown.text("headline")


def test_scores_quote_the_newest_of_the_fullest_evaluations(full: RunRecord) -> None:
    evaluation(TASKS, created="2026-01-03T00:00:00+00:00", limit=40).save(full.eval_dir / "b.json")
    evaluation({"sums": "arithmetic"}, created="2026-01-04T00:00:00+00:00").save(full.eval_dir / "c.json")
    text = page(full).text("scores")
    assert "Evaluated 2026-01-03 00:00 UTC after 100 steps on at most 40 rows a task" in text
    assert "2 other evaluations" in text


def test_an_evaluation_of_some_tasks_says_so(bare: RunRecord) -> None:
    evaluation({"sums": "arithmetic"}, step=50).save(bare.eval_dir / "a.json")
    shown = page(bare)
    assert "Only 1 of 3 tasks were evaluated. All of them: malora eval runs/trial" in shown.text("headline")
    assert "The run was trained further since" in shown.text("scores")


def test_loss_curves_show_every_task(full: RunRecord) -> None:
    shown = page(full)
    assert "sums 4.000 → 0.900" in shown.text("losses")
    labels = [attrs.get("aria-label") for tag, attrs in shown.tags if tag == "svg"]
    assert [f"Loss of {name} over training steps" for name in TASKS] == labels[:3]


def test_seesaw_shows_each_interval_and_marks_what_exceeds_its_standard_error(full: RunRecord) -> None:
    shown = page(full)
    # Standard errors of 0.1 each: a difference has 0.141.
    assert shown.row("seesaw", "sums") == ["−3.500●", "+0.400●", "", "−3.100●"]
    assert shown.row("seesaw", "cipher") == ["−0.500●", "−0.010", "", "−0.510●"]
    assert shown.row("seesaw", "gained") == ["3", "2", "", "3"]
    assert shown.row("seesaw", "lost") == ["0", "1", "", "0"]
    first, last = full.metrics.evals()[0], full.metrics.evals()[-1]
    assert shown.row("seesaw", "imbalance")[1] == f"{imbalance(first, last):.3f}"
    text = shown.text("seesaw")
    assert "1 of 3 tasks ended worse than at best: ●sums (+0.400 since step 50)." in text
    assert "In 1 of 2 intervals some tasks gained while others lost." in text


def test_seesaw_tells_slips_within_the_standard_error_apart(bare: RunRecord) -> None:
    held_out(bare, stderr=0.4)
    text = page(bare).text("seesaw")
    assert "No task ended worse than at best by more than its standard error." in text
    assert "Within the standard error: ●sums (+0.400 since step 50)." in text


def test_seesaw_without_standard_errors_marks_nothing(bare: RunRecord) -> None:
    held_out(bare)
    shown = page(bare)
    assert shown.row("seesaw", "sums") == ["−3.500", "+0.400", "", "−3.100"]
    assert "1 of 3 tasks ended worse than at best" in shown.text("seesaw")
    assert "No standard errors were measured" in shown.text("seesaw")


def test_the_error_of_a_difference_adds_in_quadrature() -> None:
    step = change(loss(2.0, stderr=0.3), loss(1.51, stderr=0.4))
    assert step is not None
    assert (step.nats, step.error) == (pytest.approx(-0.49), pytest.approx(0.5))
    assert not step.clear
    assert change(loss(2.0, stderr=0.3), loss(1.0)) == Change(-1.0, None)
    assert change(None, loss(1.0)) is None


def test_seesaw_leaves_out_what_was_not_measured(bare: RunRecord) -> None:
    held_out(bare, {"sums": HELD_OUT["sums"]})
    bare.metrics.append(EvalEvent(step=150, seconds=1.0, tasks={"cipher": loss(1.0), "sums": loss(0, tokens=0)}))
    shown = page(bare)
    assert shown.row("seesaw", "sums") == ["−3.500", "+0.400", "–", "", "–"]
    assert shown.row("seesaw", "cipher") == ["–", "–", "–", "", "–"]


def test_expert_load_and_its_distance_from_even(full: RunRecord) -> None:
    shown = page(full)
    assert shown.row("experts", "sums") == ["50", "10", "15", "25"]
    # sums and reverse_words are 0.25 from even, cipher 0: mean 1/6; two of three pairs are 0.25 apart.
    text = shown.text("experts")
    assert "move 16.7% of its assignments on average; most of all ●sums in layers 0-3 (25.0%)" in text
    assert "Two tasks differ in 16.7% of theirs." in text
    assert "4 experts, even load 25.0%" in text


def test_expert_load_comes_from_the_newest_measurement(full: RunRecord) -> None:
    later = {"sums": {"layers 0-3": [1.0, 0.0, 0.0, 0.0]}}
    full.metrics.append(EvalEvent(step=110, seconds=1.0, tasks={"sums": loss(1.0)}, expert_load=later))
    assert page(full).row("experts", "sums") == ["100", "0", "0", "0"]


def test_distances_of_expert_shares() -> None:
    assert from_uniform([0.25] * 4) == 0
    assert from_uniform([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.75)
    assert distance([1.0, 0.0], [0.0, 1.0]) == pytest.approx(1.0)


def test_balance_over_training(full: RunRecord) -> None:
    text = page(full).text("balance")
    assert "Balance loss 1.023" in text
    assert "layers 0-3 10.0% – 40.0%" in text


def test_balance_is_shown_as_it_was_at_the_last_log_step(bare: RunRecord) -> None:
    for step in range(1, 312):  # more than a chart has room for
        bare.metrics.append(
            TrainEvent(
                step=step,
                seconds=1.0,
                tasks={},
                learning_rate=1.0,
                tokens_per_second=1.0,
                balance_loss=1 + step / 1000,
                expert_share={"all": [step / 1000, 1 - step / 1000]},
            )
        )
    text = page(bare).text("balance")
    assert "Balance loss 1.311" in text
    assert "all 31.1% – 68.9%" in text


def test_a_run_without_routing_has_no_expert_sections(bare: RunRecord) -> None:
    training(bare, TASKS)
    held_out(bare)
    assert {"experts", "balance"}.isdisjoint(page(bare).texts)


def test_mixture_counts_rows_and_examples(full: RunRecord) -> None:
    shown = page(full)
    assert shown.row("mixture", "sums") == ["arithmetic", "33.3%", "400", "20", "80", "100", "0.25"]
    assert shown.row("mixture", "3 tasks") == ["2 domains", "", "1,200", "60", "240", "300", ""]
    assert "Three tasks." in shown.text("mixture")


def test_curves_say_which_rows_they_are_of(bare: RunRecord) -> None:
    """Versions before there were validation rows measured test rows on the way."""
    held_out(bare)
    for now, said in ((True, "validation loss"), (False, "loss on test rows")):
        if not now:
            bare.write_manifest(bare.manifest.model_copy(update={"validation_data": {}}))
        shown = page(bare)
        assert f"training loss {said} base model" in " ".join(shown.text("losses").split())
        assert f"Change of the {said}, nats a token" in shown.text("seesaw")
        assert f"nats a token in {said}, the mean over" in shown.text("headline")


def test_the_mixture_says_what_was_not_used(bare: RunRecord) -> None:
    unused = NotedRows(reason="longer than 512 tokens", rows=1200, samples=[3])
    data = {"sums": TaskData(source="a.jsonl", rows=5, sha256="0", unused=[unused])}
    bare.write_manifest(bare.manifest.model_copy(update={"train_data": data}))
    assert "1,200 training rows of sums were not used: longer than 512 tokens." in page(bare).text("mixture")


def test_conflict_counts_the_pairs_that_pull_apart(full: RunRecord) -> None:
    shown = page(full)
    assert "3 of 3 pairs of tasks pull against each other, most of all" in shown.text("conflict")
    assert shown.row("conflict", "sums") == ["", "-0.25", "-0.25", "2"]
    assert shown.row("conflict", "lora_A") == ["-0.25"]
    full.metrics.append(conflict(TASKS, 0.5).model_copy(update={"step": 120}))
    shown = page(full)
    assert "No two tasks pull against each other" in shown.text("conflict")
    assert shown.row("conflict", "all") == ["-0.25", "0.50"]


def test_settings_read_like_the_recipe(full: RunRecord) -> None:
    text = page(full).text("settings")
    for line in ("revision null", "trust_remote_code false", "learning_rate 0.002", "target_modules [q_proj, v_proj]"):
        assert line in text
    assert list(flat({"a": {"b": [True, None]}, "c": "", "d": {}})) == [
        ("a.b", "[true, null]"),
        ("c", '""'),
        ("d", "{}"),
    ]


def test_remedies_say_what_was_chosen_and_what_it_came_to(full: RunRecord) -> None:
    shown = page(full)
    text = shown.text("remedies")
    for line in (
        "The recipe weighs the tasks' losses.",
        "Each task has an end.",
        "Something else is done.",
    ):
        assert line in text
    assert shown.row("remedies", "sums") == ["33.3%", "75.0%", "1", "100", "50"]
    assert shown.row("remedies", "reverse_words") == ["33.3%", "0.0%", "0.5", "–", "100"]


def test_a_temperature_has_its_line_among_the_remedies(bare: RunRecord) -> None:
    bare.write_recipe(yaml.safe_dump({"mix": {"weighting": "temperature", "temperature": 5.0}}))
    assert "to the power of 1 / 5.0" in page(bare).text("remedies")


def test_reproduce_names_commands_versions_seeds_and_hashes(full: RunRecord) -> None:
    text = page(full).text("reproduce")
    assert "malora train runs/trial/recipe.yaml output.name=trial-again" in text
    for fact in ("torch 2.9.1", "train 7", "b1" * 32, "0a" * 32, "0c" * 32):
        assert fact in text


def test_a_run_that_just_began_says_what_is_missing(bare: RunRecord) -> None:
    bare.write_manifest(manifest(TASKS, status=RunStatus.RUNNING, steps=0, train_seconds=0.0))
    shown = page(bare)
    assert set(shown.texts) == {"headline", "losses", "mixture", "settings", "reproduce"}
    text = shown.text("headline")
    assert "nothing is measured yet" in text
    assert "step 0 of 100" in text
    assert "malora train runs/trial/recipe.yaml --resume" in text
    assert "malora eval runs/trial" in text
    assert "No loss was logged" in shown.text("losses")


def test_a_running_run_reports_held_out_loss_and_the_step_of_its_log(bare: RunRecord) -> None:
    bare.write_manifest(manifest(TASKS, status=RunStatus.RUNNING, steps=0))
    held_out(bare)
    with bare.metrics.path.open("a") as file:
        file.write('{"kind": "train", "st')  # killed in the middle of a line
    text = page(bare).text("headline")
    assert "After 100 steps on 3 tasks, malora took tiny from 3.000 to 1.213 nats a token" in text


def test_one_held_out_measurement_asks_for_more(bare: RunRecord) -> None:
    bare.metrics.append(EvalEvent(step=0, seconds=1.0, tasks={"sums": loss(1.0)}))
    shown = page(bare)
    assert "from two evaluations on" in shown.text("seesaw")
    assert "nothing is measured yet" in shown.text("headline")


def test_training_without_evaluations_says_which_setting_makes_them(bare: RunRecord) -> None:
    training(bare, TASKS)
    shown = page(bare)
    assert "train.eval_every" in shown.text("losses")
    assert "seesaw" not in shown.texts


def test_a_run_without_its_recipe_still_has_a_page(full: RunRecord) -> None:
    full.recipe_path.unlink()
    assert "settings" not in page(full).texts


def test_a_broken_evaluation_is_one_clear_error(full: RunRecord) -> None:
    (full.eval_dir / "b.json").write_text("{")
    with pytest.raises(RunError, match=r"b\.json: the evaluation cannot be read"):
        write_report(full)


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        write_report(RunRecord(tmp_path))


def test_one_task(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "runs" / "one")
    record.write_manifest(manifest({"sums": "arithmetic"}))
    held_out(record, {"sums": HELD_OUT["sums"]})
    evaluation({"sums": "arithmetic"}).save(record.eval_dir / "a.json")
    shown = page(record)
    assert "1 of 1 task and 1 of 1 domain gained." in shown.text("headline")
    assert "1 of 1 task ended worse than at best" in shown.text("seesaw")
    assert "while others lost" not in shown.text("seesaw")


def test_twelve_tasks_never_look_the_same_and_keep_their_looks(tmp_path: Path) -> None:
    tasks = {f"t{i}": f"d{i % 3}" for i in range(12)}
    record = RunRecord(tmp_path / "runs" / "twelve")
    record.write_manifest(manifest(tasks))
    held_out(record, dict.fromkeys(tasks, (2.0, 1.0, 0.5)))
    evaluation(tasks).save(record.eval_dir / "a.json")
    view = RunView.read(record)
    assert [task.domain for task in view.tasks.values()] == ["d0"] * 4 + ["d1"] * 4 + ["d2"] * 4
    assert len({(task.colour, task.glyph) for task in view.tasks.values()}) == 12
    shown = page(record)
    chips = re.findall(r'<span class="chip"><i style="color:([^"]+)"[^>]*>(.)</i>(\w+)<', shown.source)
    looks = {(name, colour, glyph) for colour, glyph, name in chips}
    assert looks == {(task.name, task.colour, task.glyph) for task in view.tasks.values()}
    for task in view.tasks.values():  # the style sheet has the colour, for light and for dark
        assert shown.style.count(f"--task-{task.slot}:") == 2


def test_the_command_takes_the_newest_run(full: RunRecord) -> None:
    import typer
    from typer.testing import CliRunner

    from malora_cli.cli.report import register

    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    result = CliRunner().invoke(app, ["report", "--runs", str(full.path.parent)])
    assert result.exit_code == 0, result.output
    assert result.output.split() == ["run:", str(full.path), "report:", str(full.report_path)]
    assert json.loads((full.path / "manifest.json").read_text())["steps"] == 100, "the run itself is left alone"


def test_a_partial_evaluation_does_not_hide_the_other_tasks_experts(full: RunRecord) -> None:
    before = page(full).text("experts")
    whole = full.evaluations()[-1]
    name = next(iter(whole.tasks))
    load = {name: whole.expert_load[name]} if whole.expert_load else {name: {"layers 0-1": [0.5, 0.5]}}
    partial = {"tasks": {name: whole.tasks[name]}, "expert_load": load, "created": "2999-01-01T00:00:00+00:00"}
    whole.model_copy(update=partial).save(full.eval_dir / "z.json")
    after = page(full).text("experts")
    assert all(task in after for task in whole.tasks if task in before)
