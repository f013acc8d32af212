"""Gradient conflict: against gradients taken whole, and as users meet it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from malora_cli.data.batch import TrainExample, collate
from malora_cli.errors import RecipeError
from malora_cli.modeling import wrap
from malora_cli.modeling.loss import token_nats
from malora_cli.results import ConflictEvent, RunRecord
from malora_cli.train import conflict as conflict_module
from malora_cli.train.conflict import gradient_conflict
from malora_cli.train.view import PlainView
from presets import settings
from tiny_models import randomise, tiny, tokens
from train_runs import Killed, kill_at, load, measured, same_weights, train_run, workplace

TASKS = 3


def batches(task: int) -> list[dict[str, torch.Tensor]]:
    rows = [TrainExample(tokens(9 + task, seed=10 * task + n).tolist(), [(4, 9 + task)], task) for n in range(3)]
    return [collate(rows[:2]), collate(rows[2:])]  # type: ignore[list-item]


def whole_gradient(model: torch.nn.Module, task: int, part: str) -> torch.Tensor:
    model.zero_grad()
    sum(token_nats(model, batch).sum() for batch in batches(task)).backward()  # type: ignore[union-attr]
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and part in name]
    found = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for _, p in named]).double()
    model.zero_grad()
    return found


@pytest.mark.parametrize("method", ["malora", "lora"])
@pytest.mark.parametrize(("slots", "tolerance"), [(2**16, 1e-6), (2**9, 0.2)])
def test_it_is_that_of_whole_gradients(
    method: str, slots: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact where a group has no more entries than slots, and near it where it has many times more."""
    monkeypatch.setattr(conflict_module, "SLOTS", slots)
    model = wrap(tiny("llama"), settings(method)).eval()
    randomise(model)
    found = gradient_conflict(model, [batches(task) for task in range(TASKS)])
    groups = {"malora": ("malora_down", "malora_up"), "lora": ("lora_A", "lora_B")}[method]
    assert set(groups) < set(found)
    for group in ("all", *groups):
        gradients = [whole_gradient(model, task, "" if group == "all" else group) for task in range(TASKS)]
        for a in range(TASKS):
            assert found[group].norm[a] == pytest.approx(gradients[a].norm().item(), rel=tolerance)
            for b in range(TASKS):
                cosine = F.cosine_similarity(gradients[a], gradients[b], dim=0).item()
                assert found[group].cosine[a][b] == pytest.approx(cosine, abs=tolerance)
                one, two = gradients[a].norm(), gradients[b].norm()
                similar = (2 * one * two / (one**2 + two**2)).item()
                assert found[group].magnitude[a][b] == pytest.approx(similar, rel=tolerance)


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = wrap(tiny("llama"), settings("malora")).train()
    before = torch.get_rng_state()
    gradient_conflict(model, [batches(task) for task in range(2)])
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("conflict"), tiny_model)


@pytest.fixture(scope="module")
def record(recipe: Path) -> RunRecord:
    return train_run(recipe, "output.name=probed", "train.conflict_rows=2")


def test_a_run_measures_it_at_every_evaluation_and_is_the_same_run(recipe: Path, record: RunRecord) -> None:
    plain = train_run(recipe, "output.name=plain")
    events = [event for event in record.metrics if isinstance(event, ConflictEvent)]
    assert [event.step for event in events] == [event.step for event in record.metrics.evals()] == [0, 3, 6]
    assert {"all", "malora_up", "malora_down", "malora_coefficient", "malora_router"} <= set(events[0].groups)
    assert events[0].tasks == ["copy", "upper", "add"]
    assert all(event.cost_seconds > 0 for event in events)
    assert same_weights(plain, record)
    assert [e for e in measured(record) if e["kind"] != "conflict"] == measured(plain)


def test_it_has_an_interval_of_its_own(recipe: Path, record: RunRecord) -> None:
    """Between evaluations; the run is the same, killed in between or not."""
    settings = ["train.conflict_rows=2", "train.conflict_every=2"]
    own = train_run(recipe, "output.name=own", *settings)
    assert [event.step for event in own.metrics if isinstance(event, ConflictEvent)] == [2, 4, 6]
    assert same_weights(own, record)
    with pytest.raises(Killed):
        train_run(recipe, "output.name=killed", *settings, at_step=kill_at(5))
    resumed = train_run(recipe, "output.name=killed", *settings, resume=True)
    clock = {"seconds", "tokens_per_second", "seconds_per_step", "cost_seconds"}
    one, two = ([event.model_dump(exclude=clock) for event in run.metrics] for run in (own, resumed))
    assert one == two
    with pytest.raises(RecipeError, match="no gradients are compared: conflict_rows is null"):
        load(recipe, "train.conflict_every=2")


def test_the_report_shows_it(record: RunRecord) -> None:
    from malora_cli.reports import write_report

    page = write_report(record).read_text(encoding="utf-8")
    assert "Gradient conflict" in page
    assert "of the norms" in page


def test_the_view_names_the_pair_that_pulls_apart_most(record: RunRecord) -> None:
    from io import StringIO

    event = next(event for event in record.metrics if isinstance(event, ConflictEvent))
    console = Console(file=StringIO(), width=200)
    view = PlainView(console)
    with view.running(6, {}):
        view.show(event)
    assert isinstance(console.file, StringIO)
    assert "of 3 pairs of tasks pull apart, lowest cosine" in console.file.getvalue()
