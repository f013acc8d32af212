"""Shares and weights that change during training, and tasks that are no longer drawn."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from malora_cli.data.changing import ChangingOrder
from malora_cli.data.order import MixtureOrder
from malora_cli.errors import RecipeError, RunError
from malora_cli.results import EvalEvent, RunRecord, TaskLoss, stopped
from malora_cli.train import checkpoints, measuring, processes
from malora_cli.train.remedies._base import Situation
from malora_cli.train.remedies.bandit import Bandit, BanditSettings, exploration
from malora_cli.train.remedies.uncertainty import Uncertainty, UncertaintySettings
from malora_cli.train.trainer import MaloraTrainer
from train_runs import Killed, kill_at, load, measured, rewrite, same_weights, train_run, workplace

_NUMBERS = itertools.count()
TASKS = ["upper", "copy", "add"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("adaptation"), tiny_model)


@pytest.fixture
def name() -> Iterator[str]:
    return (f"output.name=run-{number}" for number in _NUMBERS)


def _killed_and_resumed(whole: RunRecord, recipe: Path, step: int, *overrides: str) -> None:
    """A run that is killed after a step and resumed ends as the one that nothing interrupted, bit by bit."""
    with pytest.raises(Killed):
        train_run(recipe, *overrides, at_step=kill_at(step))
    resumed = train_run(recipe, *overrides, resume=True)
    assert same_weights(whole, resumed)
    assert measured(whole) == measured(resumed)


def _at(order: ChangingOrder, first: int, last: int) -> list[tuple[int, int]]:
    return list(zip(*(found.tolist() for found in order.at(np.arange(first, last))), strict=True))


# The order


@st.composite
def _orders(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, list[float]]], int]:
    """Rows, weights by the position from which they hold, and a seed."""
    rows = draw(st.lists(st.integers(1, 20), min_size=2, max_size=5))
    starts = [0, *sorted(draw(st.sets(st.integers(1, 200), max_size=4)))]
    weight = st.lists(st.floats(0.05, 1), min_size=len(rows), max_size=len(rows))
    parts = []
    for start in starts:
        weights = draw(weight)
        if start and draw(st.booleans()):
            weights[draw(st.integers(0, len(rows) - 1))] = 0.0
        parts.append((start, weights))
    return rows, parts, draw(st.integers(0, 2**32 - 1))


def _laid_out(rows: list[int], parts: list[tuple[int, list[float]]], seed: int) -> ChangingOrder:
    order = ChangingOrder(MixtureOrder(rows, parts[0][1], seed))
    for start, weights in parts[1:]:
        order.change(start, weights)
    return order


@given(_orders())
def test_every_row_of_a_task_comes_once_before_one_comes_again(
    case: tuple[list[int], list[tuple[int, list[float]]], int],
) -> None:
    """Across changes as well; a task without weight does not come at all."""
    rows, parts, _ = case
    order = _laid_out(*case)
    drawn = _at(order, 0, 300)
    for task, count in enumerate(rows):
        mine = [row for number, row in drawn if number == task]
        for epoch in range(0, len(mine) - count + 1, count):
            assert sorted(mine[epoch : epoch + count]) == list(range(count))
    ends = [*(start for start, _ in parts[1:]), 300]
    for (start, weights), end in zip(parts, ends, strict=True):
        here = Counter(number for number, _ in drawn[start:end])
        assert all(not here[task] for task, weight in enumerate(weights) if not weight)
        for task, weight in enumerate(weights):
            part = MixtureOrder(rows, weights, 0)
            assert abs(here[task] - (end - start) * weight / sum(weights)) <= part.block


@given(_orders(), st.integers(0, 100))
def test_what_was_drawn_before_a_change_stays(
    case: tuple[list[int], list[tuple[int, list[float]]], int], ahead: int
) -> None:
    rows, parts, _ = case
    order, latest = _laid_out(*case), parts[-1][0]
    before = _at(order, 0, latest + ahead + 1)
    order.change(latest + ahead + 1, [1.0] * len(rows))
    assert _at(order, 0, latest + ahead + 1) == before


@given(_orders())
def test_an_order_goes_on_from_what_a_checkpoint_keeps(
    case: tuple[list[int], list[tuple[int, list[float]]], int],
) -> None:
    rows, parts, seed = case
    order, resumed = _laid_out(*case), ChangingOrder(MixtureOrder(rows, parts[0][1], seed))
    resumed.restore(json.loads(json.dumps(order.state())))
    known = parts[-3][0] if len(parts) > 3 else 0
    assert _at(resumed, known, 300) == _at(order, known, 300)
    assert resumed.share.tolist() == order.share.tolist()
    if known:
        with pytest.raises(ValueError, match=f"known from position {known} on"):
            resumed.at(np.array([known - 1]))


def test_the_past_cannot_be_changed() -> None:
    order = ChangingOrder(MixtureOrder([5, 5], [1, 1], 0))
    order.change(20, [1, 0])
    order.change(20, [0, 1])  # once more before it holds
    assert {task for task, _ in _at(order, 20, 40)} == {1}
    for position in (0, 19):
        with pytest.raises(ValueError, match="not at"):
            order.change(position, [1, 1])


# The bandit


def _situation(tasks: int) -> Situation:
    return Situation([f"task{number}" for number in range(tasks)], seed=0, device=torch.device("cpu"))


def _bandit(tasks: int) -> Bandit:
    return Bandit(BanditSettings(), _situation(tasks))


def _shares(bandit: Bandit, losses: list[float | None]) -> list[float]:
    """Its shares after it has learned of some losses."""
    bandit.learn_of(losses)
    return bandit.factors


@given(st.lists(st.lists(st.floats(0, 8), min_size=3, max_size=3), min_size=1, max_size=30))
def test_the_bandit_is_exp3_with_averaged_importance_weighted_losses(losses: list[list[float]]) -> None:
    bandit, rewards, shares = _bandit(3), [0.0] * 3, [1 / 3] * 3
    for t, row in enumerate(losses, 1):
        rewards = [0.9 * r + 0.1 * loss / share for r, loss, share in zip(rewards, row, shares, strict=True)]
        rate_before = min(1 / 3, sqrt(log(3) / (3 * (t - 1)))) if t > 1 else 1 / 3
        rate = min(1 / 3, sqrt(log(3) / (3 * t)))
        appeal = [exp(rate_before * reward) for reward in rewards]
        shares = [(1 - 3 * rate) * value / sum(appeal) + rate for value in appeal]
        assert _shares(bandit, [*row]) == pytest.approx(shares)
    assert sum(bandit.shares) == pytest.approx(1)
    assert min(bandit.shares) >= exploration(3, len(losses)) - 1e-12


def test_a_task_with_a_higher_loss_is_drawn_more_and_more() -> None:
    bandit = _bandit(2)
    shares = [_shares(bandit, [3.0, 0.5])[0] for _ in range(40)]
    assert shares[-1] > shares[5] >= 0.5
    waiting = bandit.rewards[1]
    bandit.learn_of([3.0, None])
    assert bandit.rewards[1] == waiting


def test_one_task_has_all_of_it() -> None:
    assert _shares(_bandit(1), [2.0]) == [1.0]


def _seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[tuple[int, ...]]]:
    """The rows of every step as they are trained on."""
    rows: dict[int, list[tuple[int, ...]]] = {}
    plain = MaloraTrainer.training_step

    def spy(self: MaloraTrainer, model: Any, inputs: Any, *rest: Any) -> torch.Tensor:
        rows[self.state.global_step] = [(example.task, *example.input_ids) for example in inputs]
        rows["mixture"] = self.mixture  # type: ignore[index, assignment]
        return plain(self, model, inputs, *rest)

    monkeypatch.setattr(MaloraTrainer, "training_step", spy)
    return rows


def test_all_processes_go_by_the_writing_ones_bandit(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines may differ in a last bit, which may put rows into another order."""

    def writers(thing: Any) -> Any:
        return {**thing, "shares": [0.5, 0.25, 0.25]} if isinstance(thing, dict) and "shares" in thing else thing

    monkeypatch.setattr(processes, "the_writers", writers)
    record = train_run(recipe, "output.name=other-bandit", "remedies.bandit.every=1", "train.steps=2")
    shares = record.metrics.train()[-1].task_share
    assert shares is not None
    assert list(shares.values()) == pytest.approx([0.5, 0.25, 0.25])


BANDIT = ["remedies.bandit.every=2", "train.steps=10", "train.checkpoint_every=3"]


def test_a_run_with_a_bandit_draws_by_it_and_resumes_to_the_same_bits(
    recipe: Path, name: Iterator[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = _seen(monkeypatch)
    whole = train_run(recipe, next(name), *BANDIT)
    mixture: Any = rows.pop("mixture")  # type: ignore[call-overload]
    for step, trained in rows.items():  # not one row was with the loader when its share changed
        positions = range(step * mixture.batch_size, (step + 1) * mixture.batch_size)
        asked = [(example.task, *example.input_ids) for example in mixture.__getitems__(list(positions))]
        assert trained == asked, step
    shares = [event.task_share for event in whole.metrics.train()]
    assert shares[0] == pytest.approx(dict.fromkeys(["upper", "copy", "add"], 1 / 3))
    assert len({json.dumps(share) for share in shares}) > 2
    for step in (4, 5, 8):
        _killed_and_resumed(whole, recipe, step, next(name), *BANDIT)


def test_what_changes_shares_does_not_go_with_an_end_by_shares(recipe: Path) -> None:
    for name in ("bandit", "patience"):
        with pytest.raises(RecipeError, match=rf"remedies: {name} changes the shares .* train.stop: first_exhausted"):
            load(recipe, f"remedies.{name}={{}}", "train.steps=null", "train.stop=first_exhausted")


def test_a_bandits_shares_are_of_the_mixs_unit(recipe: Path, name: Iterator[str]) -> None:
    """Exploration leaves every task a third of the tokens at first, and losses are alike, so that shares stay near."""
    settings = ["remedies.bandit.every=1", "mix.unit=label_tokens", "train.log_every=1"]
    record = train_run(recipe, next(name), *settings)
    first, later = record.manifest.task_share, record.metrics.train()[-1].task_share
    assert first["add"] == pytest.approx(2 * first["copy"])
    assert later == pytest.approx(first, rel=0.2)
    assert later != first


# Tasks that have learned what they will


def _evals(**losses: list[float | None]) -> list[EvalEvent]:
    steps = zip(*losses.values(), strict=True)
    return [
        EvalEvent(
            step=number,
            seconds=0,
            tasks={
                task: TaskLoss(nats=0.0 if loss is None else loss, tokens=int(loss is not None), examples=1)
                for task, loss in zip(losses, row, strict=True)
            },
        )
        for number, row in enumerate(steps)
    ]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3, 2, 1], False),
        ([3, 2, 2], False),
        ([3, 2, 2, 2], True),
        ([3, 2, 2.5, 2.4], True),
        ([3, 2, 2.5, 1.9, 2.0], False),
        ([3, 4, 5, 1, 1], True),  # stopped once is stopped
        ([None, 3, 2], False),
        ([], False),
    ],
)
def test_a_task_is_stopped_after_so_many_evaluations_without_a_low(losses: list[float | None], expected: bool) -> None:
    other = [float(-number) for number in range(len(losses))]
    assert stopped(_evals(a=losses, b=other), 2) == ({"a"} if expected else set())


PATIENT = [
    "remedies.patience.evaluations=1",
    "train.eval_every=2",
    "train.steps=30",
    "train.checkpoint_every=4",
    "train.log_every=1",
]


#: Validation losses at the steps 0, 2, 4 ...: the tasks get worse one after another, whatever the training does.
PLANTED = {"add": [3.0, 3.1], "upper": [3.0, 2.0, 2.5], "copy": [3.0, 2.0, 1.0, 0.5, 0.6]}


@pytest.fixture(scope="module")
def planted() -> Iterator[None]:
    measure = measuring.evaluation

    def evaluation(*arguments: Any, **settings: Any) -> EvalEvent:
        event = measure(*arguments, **settings)
        losses = {task: values[min(event.step // 2, len(values) - 1)] for task, values in PLANTED.items()}
        tasks = {
            name: task.model_copy(update={"nats": losses[name] * task.tokens}) for name, task in event.tasks.items()
        }
        return event.model_copy(update={"tasks": tasks})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "evaluation", evaluation)
        yield


@pytest.fixture(scope="module")
def patient(recipe: Path, planted: None) -> RunRecord:
    return train_run(recipe, "output.name=patient", *PATIENT)


def test_a_stopped_task_is_no_longer_drawn_and_the_run_ends_with_the_last(patient: RunRecord, recipe: Path) -> None:
    ends = {"add": 2, "upper": 4, "copy": 8}
    assert patient.finished
    assert patient.manifest.steps == 8
    for event in patient.metrics.train():
        for task, end in ends.items():
            assert task not in event.tasks or event.step <= end + 1  # the loader holds the rows of one step
            assert ((event.task_share or {})[task] == 0) == (event.step > end)
    examples = sum(task.examples for event in patient.metrics.train() for task in event.tasks.values())
    assert examples == load(recipe).recipe.train.batch_size * patient.manifest.steps, "steps stay as large"


def test_a_run_whose_tasks_stop_resumes_to_the_same_bits(patient: RunRecord, recipe: Path, name: Iterator[str]) -> None:
    for step in {5, 7}:
        _killed_and_resumed(patient, recipe, step, next(name), *PATIENT)
    refused = "the recipe differs from the run's own in train.eval_every"
    with pytest.raises(Killed):
        train_run(recipe, override := next(name), *PATIENT, at_step=kill_at(5))
    with pytest.raises(RunError, match=refused):
        train_run(recipe, override, *PATIENT, "train.eval_every=3", resume=True)


def test_a_run_that_died_over_its_end_is_not_trained_further(
    patient: RunRecord, recipe: Path, name: Iterator[str]
) -> None:
    again = train_run(recipe, next(name), *PATIENT)
    before = measured(again)
    rewrite(again.path / "manifest.json", lambda manifest: manifest.update(status="running", steps=0))
    (again.adapter_dir / "adapter_model.safetensors").unlink()
    resumed = train_run(recipe, f"output.name={again.name}", *PATIENT, resume=True)
    assert same_weights(patient, resumed)
    assert measured(resumed) == before
    assert resumed.manifest.steps == patient.manifest.steps


def test_the_best_checkpoint_of_every_task_is_kept(recipe: Path, name: Iterator[str]) -> None:
    settings = ["train.learning_rate=0.2", "train.steps=16", "train.eval_every=2", "train.checkpoint_every=2"]
    record = train_run(recipe, next(name), *settings, "train.keep_best_of_tasks=true", "train.keep_checkpoints=1")
    later = [event for event in record.metrics.evals() if event.step]  # there is no checkpoint of step 0
    best = {task: min(later, key=lambda event: event.tasks[task].loss or 0.0).step for task in TASKS}
    losses = checkpoints.validation_losses(checkpoints.checkpoints(record.checkpoints_dir))
    found = checkpoints.best_of_tasks(losses)
    assert {task: checkpoints.step_of(path) for task, path in found.items()} == best
    kept = {checkpoints.step_of(path) for path in checkpoints.checkpoints(record.checkpoints_dir)}
    assert kept == {*best.values(), 16}


# Weights that are learned


def test_the_loss_is_that_of_the_paper_a_token() -> None:
    weights = Uncertainty(UncertaintySettings(), _situation(2))
    weights.restore({"log_variance": [0.4, -1.0]})
    nats, tasks = torch.tensor([2.0, 3.0, 0.5]), torch.tensor([0, 1, 0])
    expected = [exp(-0.4) * 2.0 + 0.2, exp(1.0) * 3.0 - 0.5, exp(-0.4) * 0.5 + 0.2]
    torch.testing.assert_close(weights.weigh(nats, tasks), torch.tensor(expected))
    weights.weigh(nats, tasks).sum().backward()
    torch.testing.assert_close(weights.log_variance_N.grad, torch.tensor([1 - exp(-0.4) * 2.5, 0.5 - exp(1.0) * 3.0]))


def test_learned_weights_settle_at_half_the_inverse_loss() -> None:
    """Where the derivative of ``exp(-s) L + s / 2`` is zero."""
    weights = Uncertainty(UncertaintySettings(), _situation(2))
    optimiser = torch.optim.AdamW(weights.parameters(), lr=0.05, weight_decay=0.0)
    for _ in range(1000):
        optimiser.zero_grad()
        weights.weigh(torch.tensor([2.0, 0.25]), torch.tensor([0, 1])).sum().backward()
        optimiser.step()
    assert weights.log()["loss_weight"] == pytest.approx({"task0": 0.25, "task1": 2.0}, rel=1e-3)


@pytest.mark.parametrize("surgery", ["false", "{}"])
def test_a_run_learns_its_weights_and_resumes_to_the_same_bits(surgery: str, recipe: Path, name: Iterator[str]) -> None:
    settings = ["remedies.uncertainty={}", f"remedies.pcgrad={surgery}", "train.steps=8"]
    whole, plain = train_run(recipe, next(name), *settings), train_run(recipe, next(name), *settings[1:])
    weights = [event.loss_weight or {} for event in whole.metrics.train()]
    assert all(0 < weight < 1 for weight in weights[-1].values()), "losses are above half a nat"
    assert weights[-1] != weights[0]
    assert plain.metrics.train()[-1].loss_weight is None
    assert not same_weights(whole, plain)
    for step in (3, 5):
        _killed_and_resumed(whole, recipe, step, next(name), *settings)
