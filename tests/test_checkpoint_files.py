"""The files of a checkpoint: in order, whose they are, and read back as they were."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from malora_cli.errors import RunError
from malora_cli.train import checkpoints


def test_checkpoints_are_in_order_of_their_steps(tmp_path: Path) -> None:
    for step in (9_999_999, 2, 10_000_000):
        checkpoints.commit(checkpoints.begin(tmp_path, step))
    (tmp_path / "step-x").mkdir()
    (tmp_path / "step-0000099").touch()
    assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(tmp_path)] == [2, 9_999_999, 10_000_000]
    checkpoints.prune(tmp_path, newest=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000099", "step-10000000", "step-x"]
    assert checkpoints.commit(checkpoints.begin(tmp_path, 99)).is_dir()


def test_half_a_removed_checkpoint_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        checkpoints.commit(checkpoints.begin(tmp_path, step))
    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", lambda *_, **__: None)  # as where the process is killed before its end
        checkpoints.prune(tmp_path, newest=1)
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["step-0000002"]
    assert checkpoints.newest_intact(tmp_path) == tmp_path / "step-0000002"
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000002"]


def test_a_checkpoint_is_written_over_by_the_same_step(tmp_path: Path) -> None:
    for content in ("old", "new"):
        scratch = checkpoints.begin(tmp_path, 3)
        (scratch / content).write_text("")
        final = checkpoints.commit(scratch)
    assert sorted(path.name for path in final.iterdir()) == ["checkpoint.json", "new"]


def test_a_checkpoint_says_whose_it_is(tmp_path: Path) -> None:
    for step, run_id in ((1, "a"), (2, "b")):
        checkpoints.commit(checkpoints.begin(tmp_path, step), run_id)
    assert checkpoints.newest_intact(tmp_path, "b") == tmp_path / "step-0000002"
    with pytest.raises(RunError, match=r"step-0000002: this checkpoint is another run's\. Move it away"):
        checkpoints.newest_intact(tmp_path, "a")
    (tmp_path / "step-0000002").rename(tmp_path / "step-0000003")
    with pytest.warns(UserWarning, match=r"step-0000003 is damaged \(it is of step 2\); an earlier one is taken"):
        assert checkpoints.newest_intact(tmp_path, "a") == tmp_path / "step-0000001"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"generators": 5, "extra": 5}', '{"generators": [], "extra": null}', "{}"]
)
def test_a_training_state_of_another_shape_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "training_state.json").write_text(text)
    for load_part in (lambda: checkpoints.load_extra(tmp_path), lambda: checkpoints.load_random_state(tmp_path, 0)):
        with pytest.raises(RunError, match="the training state cannot be read") as caught:
            load_part()
        assert "\n" not in str(caught.value)
    assert checkpoints.validation_losses([tmp_path]) == {}


def test_random_generators_come_back(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float, float]:
        return random.random(), random.gauss(), float(np.random.standard_normal()), float(torch.rand(()))

    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    draw()  # leaves the second half of a pair of normal numbers behind
    checkpoints.save_training_state(
        tmp_path, optimizer.state_dict(), scheduler, [checkpoints.random_state()], {"seconds": 1.5}
    )
    expected = draw()
    draw()
    checkpoints.load_random_state(tmp_path, 0)
    assert draw() == expected
    assert checkpoints.load_extra(tmp_path) == {"seconds": 1.5}


def test_optimizer_and_schedule_come_back(tmp_path: Path) -> None:
    def start() -> tuple[torch.nn.Parameter, Any, Any]:
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.1)
        return parameter, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def step(parameter: torch.nn.Parameter, optimizer: Any, scheduler: Any) -> None:
        parameter.grad = parameter.detach() ** 2 + torch.tensor([0.1, 1.0, 3.0])
        optimizer.step()
        scheduler.step()

    parameter, optimizer, scheduler = start()
    for _ in range(3):
        step(parameter, optimizer, scheduler)
    checkpoints.save_training_state(tmp_path, optimizer.state_dict(), scheduler, [checkpoints.random_state()], {})
    other, other_optimizer, other_scheduler = start()
    other.data.copy_(parameter.data)
    checkpoints.load_optimizer_and_scheduler(tmp_path, other_optimizer, other_scheduler)
    for _ in range(2):
        step(parameter, optimizer, scheduler)
        step(other, other_optimizer, other_scheduler)
    assert torch.equal(parameter, other)
    assert scheduler.get_last_lr() == other_scheduler.get_last_lr()
