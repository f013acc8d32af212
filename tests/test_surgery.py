"""Gradient surgery against the algorithm as the paper writes it, and in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from malora_cli.errors import RecipeError
from malora_cli.train import trainer as trainer_module
from malora_cli.train.remedies.pcgrad import _SURGERY, combine
from test_trust import _stopped_at
from train_runs import losses, same_weights, train_run, workplace

KEY = [3, 5]


def slow(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Algorithm 1, gradient by gradient."""
    projected = [gradient.clone() for gradient in gradients]
    for i, gradient in enumerate(projected):
        for j in np.random.default_rng([*KEY, _SURGERY, i]).permutation(len(gradients)):
            if j != i and gradient @ gradients[j] < 0:
                gradient -= (gradient @ gradients[j]) / (gradients[j] @ gradients[j]) * gradients[j]
    return torch.stack(projected).sum(0)


@given(st.integers(2, 6), st.integers(0, 1000))
def test_it_is_the_papers_algorithm(tasks: int, seed: int) -> None:
    torch.manual_seed(seed)
    gradients = [torch.randn(9, dtype=torch.float64) for _ in range(tasks)]
    parts = [[gradient[:4].reshape(2, 2), gradient[4:]] for gradient in gradients]
    found = torch.cat([part.flatten() for part in combine(parts, KEY)])
    torch.testing.assert_close(found, slow(gradients))


def test_two_opposite_gradients_leave_nothing_and_like_ones_their_sum() -> None:
    one = [torch.tensor([1.0, 2.0])]
    assert combine([one, [-one[0]]], KEY)[0].tolist() == [0.0, 0.0]
    assert combine([one, [2 * one[0]]], KEY)[0].tolist() == [3.0, 6.0]
    assert combine([one], KEY)[0].tolist() == [1.0, 2.0]
    assert combine([one, [torch.zeros(2)]], KEY)[0].tolist() == [1.0, 2.0]


def test_what_is_left_undoes_no_task_of_two() -> None:
    torch.manual_seed(0)
    one, two = torch.randn(50), torch.randn(50) - 0.5 * torch.ones(50)
    two = two - 1.2 * (two @ one) / (one @ one) * one - 0.3 * one  # against the other
    assert one @ two < 0
    [left] = combine([[one], [two]], KEY)
    assert left @ one >= -1e-4
    assert left @ two >= -1e-4


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("surgery"), tiny_model)


def test_a_run_with_surgery_trains_and_resumes_to_the_same_bits(recipe: Path) -> None:
    whole = train_run(recipe, "output.name=whole", "remedies.pcgrad={}")
    plain = train_run(recipe, "output.name=plain")
    assert not same_weights(whole, plain)
    _stopped_at(recipe, 3, "output.name=stopped", "remedies.pcgrad={}")
    resumed = train_run(recipe, "output.name=stopped", "remedies.pcgrad={}", resume=True)
    assert same_weights(whole, resumed)


def test_without_conflict_it_is_the_plain_gradient(recipe: Path) -> None:
    """Of one task there is nothing to take out."""
    alone = ["method.lora_dropout=0", "mix.weighting=explicit", "train.learning_rate=1e-4", "method.balance_factor=0"]
    alone += ["mix.tasks.copy.weight=1", "mix.tasks.upper.weight=1e-4", "mix.tasks.add.weight=1e-4"]
    one = train_run(recipe, "output.name=one", *alone, "remedies.pcgrad={}")
    two = train_run(recipe, "output.name=two", *alone)
    for first, second in zip(losses(one), losses(two), strict=True):
        assert first == pytest.approx(second, abs=1e-5)


def test_routers_balance_over_the_rows_of_all_tasks(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not each task's by itself. While B is zero, the balance loss is all that a router's gradient comes from."""
    found: list[list[torch.Tensor]] = []
    plain = trainer_module.MaloraTrainer._get_grad_norm

    def spy(self: Any, model: Any, grad_norm: Any = None) -> Any:
        found.append([p.grad.clone() for name, p in model.named_parameters() if "malora_router" in name])
        return plain(self, model, grad_norm)

    monkeypatch.setattr(trainer_module.MaloraTrainer, "_get_grad_norm", spy)
    once = ["method.lora_dropout=0", "train.steps=1", "train.micro_batch_size=6", "train.max_grad_norm=1"]
    runs = [train_run(recipe, "output.name=all", *once)]
    runs += [train_run(recipe, "output.name=apart", *once, "remedies.pcgrad={}")]
    for one, two in zip(*found, strict=True):
        assert one.norm() > 0
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4 * float(one.norm()))
    balance = [run.metrics.train()[0].balance_loss for run in runs]
    assert balance[0] == pytest.approx(balance[1], rel=1e-5)


def test_it_is_for_one_process(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"remedies.pcgrad: surgery needs the whole gradient of each task"):
        train_run(recipe, "output.name=never", "remedies.pcgrad={}")
