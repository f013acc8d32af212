"""Long logs and many tasks: what is kept of them is small and true, and the page says what it leaves out."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

import pytest

from malora_cli.reports.sections.experts import apart, distance
from malora_cli.reports.sections.losses import training_curve
from malora_cli.reports.view import RunView
from malora_cli.results import ConflictEvent, Digest, EvalEvent, RunRecord, Thinned, TrainEvent
from report_runs import TASKS, bare_run, conflict, evaluation, held_out, loss, manifest, page


def _step(step: int, nats_a_token: float = 1.0, *, tokens: int = 10, balance: float | None = None) -> TrainEvent:
    return TrainEvent(
        step=step,
        seconds=float(step),
        tasks={"a": loss(nats_a_token, tokens=tokens)},
        learning_rate=1e-3,
        tokens_per_second=1.0,
        balance_loss=balance,
        expert_share=None if balance is None else {"all": [balance / 10, 1 - balance / 10]},
    )


def _evals(losses: list[float], task: str = "a") -> list[EvalEvent]:
    return [EvalEvent(step=10 * i, seconds=0.0, tasks={task: loss(x)}) for i, x in enumerate(losses)]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 17, 63, 64, 65, 1000])
def test_a_thinned_stream_loses_nothing_of_a_sum_and_keeps_its_ends(count: int) -> None:
    sums, picks = Thinned[int](8, lambda a, b: a + b), Thinned[int](8, lambda a, _: a)
    for number in range(1, count + 1):
        sums.add(number)
        picks.add(number)
    assert sum(sums.items) == count * (count + 1) // 2
    assert len(sums.items) <= 8
    assert count <= 8 * sums.each < max(16, 2 * count + 8)
    kept = picks.with_last()
    assert kept[:1] == [1][:count]
    assert kept[-1:] == [count][:count]
    assert kept == sorted(set(kept))
    assert len(kept) <= 9


def test_a_training_curve_pools_many_log_steps_without_losing_a_token() -> None:
    rows = [(1.0, 100), (4.0, 50), (2.0, 0), (3.0, 10)] * 100  # nats a token, tokens
    digest = Digest(_step(i, x, tokens=n) for i, (x, n) in enumerate(rows, 1))
    steps, losses = training_curve(digest.points.items, "a")
    assert digest.points.each == 4
    assert steps == list(range(4, 401, 4))
    assert losses == [pytest.approx((1.0 * 100 + 4.0 * 50 + 3.0 * 10) / 160)] * 100
    assert digest.examples["a"] == 4000
    assert training_curve(digest.points.items, "b") == ([], [])
    assert training_curve(Digest([_step(1, tokens=0)]).points.items, "a") == ([], []), "no token, no point"


def test_few_log_steps_stay_as_they_are() -> None:
    digest = Digest(_step(i, 1 / i, balance=float(i % 7)) for i in range(1, 151))
    steps, losses = training_curve(digest.points.items, "a")
    assert (steps, losses) == (list(range(1, 151)), pytest.approx([1 / i for i in range(1, 151)]))
    assert [point.balance_loss for point in digest.points.items] == [float(i % 7) for i in range(1, 151)]


def test_balance_is_a_mean_over_log_steps_and_its_newest_value_is_kept() -> None:
    digest = Digest(_step(i, balance=2.0 if i % 2 else None) for i in range(1, 401))
    assert [point.balance_loss for point in digest.points.items] == [2.0] * 100, "those without one do not count"
    assert digest.points.items[0].share("all") == pytest.approx([0.2, 0.8])
    assert digest.points.items[0].share("none") is None
    digest = Digest(_step(i, balance=float(i)) for i in range(1, 401))
    assert [point.balance_loss for point in digest.points.items[:2]] == [2.5, 6.5]
    assert digest.balance_loss == 400


def test_of_many_evaluations_the_first_the_last_and_the_lowest_are_kept() -> None:
    rng = random.Random(0)
    losses = [rng.uniform(1, 2) for _ in range(1000)]
    losses[333] = 0.5
    digest = Digest(_evals(losses))
    assert len(digest.evals) <= 65
    assert digest.evaluated == 1000
    assert [digest.evals[0].step, digest.evals[-1].step] == [0, 9990]
    assert digest.lows.best["a"][0] == 3330
    (slip,) = digest.lows.slips()
    assert (slip.best_step, slip.change.nats) == (3330, pytest.approx(losses[-1] - 0.5))


def test_when_a_task_stopped_is_that_of_a_slow_count() -> None:
    rng = random.Random(1)
    losses = [round(rng.uniform(1, 2), 1) for _ in range(60)]
    lows = Digest(_evals(losses)).lows
    for patience in range(1, 30):
        waits = [all(min(losses[:start]) <= x for x in losses[start : start + patience]) for start in range(1, 60)]
        slow = next((10 * (i + patience) for i, waited in enumerate(waits) if waited and i + patience < 60), None)
        assert lows.stopped_at("a", patience) == slow
    assert lows.stopped_at("a", 0) is None
    assert lows.stopped_at("b", 1) is None


def test_comparisons_of_gradients_are_kept_as_means() -> None:
    events = [conflict(TASKS, i / 1000).model_copy(update={"step": i}) for i in range(200)]
    digest = Digest(events)
    kept = digest.conflicts.with_last()
    assert len(kept) <= 65
    assert [(k.step, k.cosine["lora_A"]) for k in kept] == [(k.step, pytest.approx(k.step / 1000)) for k in kept]
    assert kept[-1].step == 199
    assert digest.conflict == events[-1]
    assert digest.conflict_seconds == pytest.approx(300)


def test_the_mean_distance_of_two_tasks_is_that_over_all_pairs() -> None:
    rng = random.Random(2)
    groups = [[[rng.random() for _ in range(4)] for _ in range(count)] for count in (7, 5, 1)]
    slow = [distance(a, b) for tasks in groups for a, b in combinations(tasks, 2)]
    assert apart(groups) == pytest.approx(sum(slow) / len(slow))
    assert apart([]) == 0


def test_a_page_of_a_long_log_says_what_it_thins(tmp_path: Path) -> None:
    record = bare_run(tmp_path)
    for event in [*_evals([2.0 + (i % 3) for i in range(200)], "sums"), *(_step(i, balance=1.0) for i in range(310))]:
        record.metrics.append(event)
    comparisons: list[ConflictEvent] = [conflict(TASKS).model_copy(update={"step": i}) for i in range(130)]
    for comparison in comparisons:
        record.metrics.append(comparison)
    shown = page(record)
    assert "There are 310 log steps: a point of a training curve is the loss of all tokens of 4" in shown.text("losses")
    assert "Of 200 evaluations 51 are drawn, the first and the last among them" in shown.text("losses")
    assert "The columns are of 51 of 200 evaluations" in shown.text("seesaw")
    assert "the mean over 4 of them, and the figures above the charts are those of the last" in shown.text("balance")
    assert "Of 130 measurements 34 are shown" in shown.text("conflict")
    few = bare_run(tmp_path / "few")
    held_out(few)
    for step in range(150):
        few.metrics.append(_step(step, balance=1.0))
    few.metrics.append(conflict(TASKS))
    for words in ("log steps:", "are drawn", "The columns are of", "are shown"):
        assert not any(words in text for text in page(few).texts.values()), words


def test_a_page_of_very_many_tasks_shows_those_that_matter_and_lists_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("malora_cli.reports.view.SHOWN", 4)
    tasks = {f"task_{i:03d}": f"domain {i}" for i in range(70)}
    record = RunRecord(tmp_path / "runs" / "many")
    record.write_manifest(manifest(tasks))
    record.write_recipe("mix:\n" + "".join(f"  v{i}: {i}\n" for i in range(2003)))
    # The higher its number the more a task gains; all were better once.
    held_out(record, {name: (3.0, 1.0, 3.0 - i / 100) for i, name in enumerate(tasks)})
    load = {name: {"all": [0.5, 0.5]} for name in tasks}
    entropy = {name: {"all": 0.5} for name in tasks}
    evaluation(tasks, expert_load=load, gate_entropy=entropy).save(record.eval_dir / "a.json")
    record.metrics.append(conflict(tasks))
    chosen = ["task_000", "task_001", "task_068", "task_069"]
    view = RunView.read(record)
    assert [task.name for task in view.shown(view.tasks.values())] == chosen
    shown = page(record)
    assert [tag for tag, _ in shown.tags].count("svg") == 4
    for section in ("scores", "seesaw", "experts", "entropy", "conflict", "mixture"):
        heads = [row[0].strip().lstrip("●■▲◆") for row in shown.rows[section] if row]
        assert [head for head in heads if head in tasks] == chosen, section
        assert "Of 70 tasks these are 4: the half of them whose loss rose most" in shown.text(section), section
    assert "70 of 70 tasks ended worse than at best: ●task_000 (+2.000 since step 50)" in shown.text("seesaw")
    assert "and 10 others." in shown.text("seesaw")
    assert shown.row("seesaw", "lost") == ["0", "70", "", "0"], "all tasks count"
    assert "for 60 of 70 domains" in shown.text("headline")
    listed = [line.split(",") for line in shown.texts["mixture"].splitlines() if line.startswith("task_")]
    assert [line[0] for line in listed] == list(tasks)
    assert listed[50] == ["task_050", "domain 50", "0.01429", "400", "20", "80", "0", "3", "1", "2.5", "0", "1"]
    assert "and 3 values more: see recipe.yaml." in shown.text("settings")
    assert "Those of the tasks that are shown; all are in manifest.json." in shown.text("reproduce")
