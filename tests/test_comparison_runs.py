"""What the page of a comparison shows of its runs' folders: routers, experts, and answers that differ."""

from __future__ import annotations

import base64
import csv
import io
import re
import shutil
import time
from pathlib import Path

import pytest

from compared import METHODS, SEEDS, TASKS, comparison
from malora_cli.reports import write_comparison
from malora_cli.reports.comparison.page import render_comparison
from malora_cli.reports.comparison.runs import routing_of
from malora_cli.results import RunRecord
from malora_cli.results.comparison import Comparison, Failure
from report_runs import Page, answer, conflict, evaluation, geometry, keep_answers, manifest

EVIL = "<script>alert(1)</script>\"'& {{ 7 * 7 }}"
GROUPS = ("layers 0-9", "layers 10-19", "layers 20-29")
#: Methods of the comparison that have routers.
ROUTED = ("alpha", "beta")


def named(it: Comparison, folder: str = "") -> Comparison:
    """The comparison with its runs' names as they are beside it."""
    methods = [
        result.model_copy(update={"runs": [run.model_copy(update={"run": Path(run.run).name}) for run in result.runs]})
        for result in it.methods
    ]
    return it.model_copy(update={"methods": methods, "name": folder or it.name})


def write_run(
    runs: Path, method: str, seed: int, *, routed: bool, rows: list[dict[str, object]] | None = None
) -> RunRecord:
    """A run folder with an evaluation, as light runs have it."""
    record = RunRecord(runs / f"{method}-{seed}")
    record.write_manifest(manifest(TASKS))
    load = {task: {group: [0.5, 0.2 - seed / 100, 0.2, 0.1 + seed / 100] for group in GROUPS} for task in TASKS}
    load["task_b"] = {group: [0.25] * 4 for group in GROUPS}
    entropy = {task: dict.fromkeys(GROUPS, 0.9 - seed / 10) for task in TASKS}
    measured = {"expert_load": load, "gate_entropy": entropy} if routed else {}
    evaluation(TASKS, **measured).save(record.eval_dir / "a.json")
    if routed:
        geometry(0.5 + seed / 10).save(record.experts_path)
    if rows is not None:
        keep_answers(record, rows)
    return record


def rows_of(method: str, prompt: str = "question") -> list[dict[str, object]]:
    """Twenty rows of a task, of which the better half of the methods gets some right that the others do not."""
    right = {"plain": range(5, 15), "alpha": range(3, 13)}.get(method, range(10))
    return [
        answer("task_a", row, 0.0, float(row in right), prompt=f"{prompt} {row}", adapter=f"{method} said {row}")
        for row in range(20)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the comparison, beside those of its runs."""
    for method in METHODS:
        for seed in SEEDS:
            if (method, seed) != ("epsilon", 3):
                write_run(tmp_path, method, seed, routed=method in ROUTED, rows=rows_of(method))
    return tmp_path / "seven.compare"


def page(folder: Path, it: Comparison | None = None) -> Page:
    return Page(write_comparison(folder, it or named(comparison()), folder.parent).read_text(encoding="utf-8"))


def summary(shown: Page, method: str) -> list[str]:
    """The row of a method in the table that the section begins with."""
    cells = [[" ".join(cell.split()) for cell in row] for row in shown.rows["routing"]]
    return next(row[1:] for row in cells if row[0].endswith(method))


def downloads(shown: Page) -> dict[str, list[dict[str, str]]]:
    """The files that a page brings along, by name."""
    links = {attrs["download"]: attrs["href"] for tag, attrs in shown.tags if tag == "a" and "download" in attrs}
    texts = {str(name): base64.b64decode(str(href).partition("base64,")[2]).decode() for name, href in links.items()}
    return {name: list(csv.DictReader(io.StringIO(text))) for name, text in texts.items()}


def test_routing_is_the_mean_over_seeds(folder: Path) -> None:
    shown = page(folder)
    # Seven tasks have [.5, .18, .2, .12], of which a quarter is too much for the first expert; one is even.
    assert summary(shown, "alpha") == ["21.9%", "6.2%", "70.0%", "70.0%", "5.0%", "25.0%", "75.0%"]
    heads = [row[0] for row in shown.rows["routing"] if row]
    assert not any(head.endswith(method) for head in heads for method in set(METHODS) - set(ROUTED))
    loads = [[cell.strip() for cell in row] for row in shown.rows["routing"] if row and row[0].strip() == "task_a"]
    assert loads.count(["task_a", "50", "18", "20", "12"]) == len(ROUTED) * len(GROUPS)
    assert loads.count(["task_a", "70", "70", "70"]) == len(ROUTED)


def test_every_figure_of_routing_is_in_its_table_and_its_file(folder: Path) -> None:
    shown = page(folder)
    inside = shown.source.split('<section id="routing">')[1].split("</section>")[0]
    assert inside.count("<svg") == 2
    assert inside.index('<details class="data">') > inside.rindex("<svg")
    rows = [row for row in downloads(shown)["routing.csv"] if row["method"] == "alpha"]
    assert {row["seeds"] for row in rows} == {"1 2 3"}
    load = {(row["task"], row["place"]): float(row["value"]) for row in rows if row["metric"] == "expert load"}
    assert load["task_a", "2"] == pytest.approx(0.18)
    kinds = {row["metric"] for row in rows}
    assert {"gate entropy", "similarity, down", "effective rank, up", "singular value, up"} < kinds
    [first, *_] = [row for row in rows if row["metric"] == "singular value, down"]
    assert (first["place"], float(first["value"])) == ("1", 2.0)
    assert {"comparison.csv", "routing.csv"} == set(downloads(shown))


def test_a_run_that_is_gone_or_damaged_is_left_out(folder: Path) -> None:
    runs = folder.parent
    shutil.rmtree(runs / "alpha-1")
    (runs / "alpha-2" / "experts.json").write_text("{")
    alpha = named(comparison()).of("alpha").runs
    routing = routing_of(alpha, runs)
    assert routing is not None
    assert routing.seeds == [3]
    assert summary(page(folder), "alpha")[2] == "60.0%"
    for method in METHODS:
        for run in runs.glob(f"{method}-*"):
            shutil.rmtree(run)
    empty = page(folder)
    assert "keeps anything of routers" in empty.text("routing")
    assert empty.text("rows").endswith("The answers of plain and alpha are not here to be compared.")
    assert "routing" not in Page(render_comparison(comparison())).texts


def test_conflict_is_drawn_by_step_and_averaged_over_seeds(folder: Path) -> None:
    assert "conflict" not in page(folder).texts, "none was measured"
    tasks = dict.fromkeys(("task_a", "task_b"), "domain")
    for seed, cosine in zip(SEEDS, (0.1, 0.2, 0.6), strict=True):
        for step, shift in ((0, 0.0), (50, -0.3)):
            event = conflict(tasks, cosine + shift).model_copy(update={"step": step})
            RunRecord(folder.parent / f"alpha-{seed}").metrics.append(event)
    shutil.rmtree(folder.parent / "alpha-1")
    [heads, row] = [[cell.strip() for cell in row] for row in page(folder).rows["conflict"]]
    assert heads == ["Method", "step 0", "step 50"]
    assert row[1:] == ["0.400", "0.100"]


def test_memory_of_a_gpu_is_shown_where_it_was_measured(folder: Path) -> None:
    assert "peak GiB" not in page(folder).text("methods")
    it = named(comparison())
    with_peak = [run.model_copy(update={"peak_bytes": run.seed * 2**30}) for run in it.of("alpha").runs]
    methods = [
        found.model_copy(update={"runs": with_peak}) if found.method == "alpha" else found for found in it.methods
    ]
    rows = page(folder, it.model_copy(update={"methods": methods})).rows["methods"]
    assert {row[0].strip()[1:].split()[0]: row[-1] for row in rows[1:3]}["alpha"] == "3.00"
    assert rows[0][-1] == "peak GiB"


def test_the_page_says_how_to_repeat_it_and_no_place_of_a_machine(folder: Path) -> None:
    failure = Failure(method="zeta", seed=3, run="zeta-3", why=f"{folder.parent.absolute()}/zeta-3: out of memory")
    command = ["malora", "compare", "baselines", "my recipe.yaml", "--tune", "auto"]
    shown = page(folder, named(comparison()).model_copy(update={"failures": [failure], "command": command}))
    assert "malora compare baselines 'my recipe.yaml' --tune auto" in shown.text("repeat")
    assert "zeta-3: out of memory" in shown.text("failures")
    assert str(folder.parent.absolute()) not in shown.source
    assert "Command" not in page(folder).text("repeat")


def test_answers_of_the_baseline_and_the_best_method_stand_side_by_side(folder: Path) -> None:
    shown = page(folder)
    text = shown.text("rows")
    assert "Of 20 rows ●alpha does 2 worse than" in text
    assert "and 2 better, by their scores with seed 1" in text
    answers = re.findall(r"(plain|alpha) said (\d+)", text)
    assert sorted({int(row) for _, row in answers}) == [3, 4, 13, 14]
    assert [int(row) for name, row in answers if name == "alpha"][:2] in ([13, 14], [14, 13]), (
        "those it does worse first"
    )
    assert text.count("right right") == 4
    assert page(folder).source == shown.source, "the same rows each time"


def test_the_best_other_method_stands_in_where_the_baseline_is_the_best(folder: Path) -> None:
    it = named(comparison())
    methods = [found.model_copy(update={"value": 0.1}) if found.method == "plain" else found for found in it.methods]
    ordered = sorted(methods, key=lambda found: found.value or 0)
    assert "alpha does 2 worse than" in page(folder, it.model_copy(update={"methods": ordered})).text("rows")


def test_answers_that_are_worth_the_same_are_said_to_be(folder: Path) -> None:
    for seed in SEEDS:
        for method in ("plain", "alpha"):
            keep_answers(RunRecord(folder.parent / f"{method}-{seed}"), rows_of("same"))
    assert page(folder).text("rows").endswith("alpha and plain score alike on every one of 20 rows with seed 1.")


def test_what_models_say_is_escaped(folder: Path) -> None:
    for method in ("plain", "alpha"):
        rows = [{**row, "adapter": EVIL, "reference": EVIL} for row in rows_of(method, prompt=EVIL)]
        keep_answers(RunRecord(folder.parent / f"{method}-1"), rows)
    shown = page(folder)
    assert "<script" not in shown.source
    assert "{{ 7 * 7 }}" in shown.text("rows")


def test_seven_methods_of_which_all_have_routers_stay_small(tmp_path: Path) -> None:
    long = "word " * 2000
    for method in METHODS:
        for seed in SEEDS:
            write_run(tmp_path, method, seed, routed=True, rows=rows_of(method, prompt=long))
    since = time.process_time()
    shown = page(tmp_path / "seven.compare")
    assert time.process_time() - since < 10
    assert len(shown.source.encode()) < 1_500_000
    assert shown.text("routing").count("load, entropy and similarity by layers") == len(METHODS)
    assert "[… " in shown.text("rows")
    ids = [attrs["id"] for _, attrs in shown.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert not re.search(r"https?:|//\w+\.\w", re.sub(r"base64,[^\"]*", "", shown.source))
