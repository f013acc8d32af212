"""Several processes on one batch, started as users start them: the losses and weights of one, and one that writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import dying
from forked import together
from malora_cli.cli import main
from malora_cli.errors import RecipeError, RunError
from malora_cli.results import RunRecord
from malora_cli.train import checkpoints, processes
from malora_cli.train import launch as launch_module
from train_runs import adapter, losses, refused, same_weights, train_run, workplace

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
SAME = ["method.lora_dropout=0", "train.learning_rate=1e-4"]
MALORA = [*SAME, "method={name: malora, r: 4}", "train.micro_batch_size=3", "train.micro_batch_tokens=80"]
MALORA += ["train.max_length=64", "method.lora_dropout=0"]
BANDIT = "remedies.bandit.every=3"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("processes"), tiny_model)


@pytest.fixture(scope="module")
def one(recipe: Path) -> RunRecord:
    """What one process makes of `MALORA`."""
    return train_run(recipe, *MALORA, "output.name=one")


@pytest.fixture(scope="module")
def start(recipe: Path) -> RunRecord:
    """Where it began."""
    still = ["train.learning_rate=1e-30", "train.weight_decay=0", "train.steps=1"]
    return train_run(recipe, *MALORA, *still, "output.name=start")


@pytest.fixture(scope="module")
def whole(recipe: Path) -> RunRecord:
    """What two processes make of the recipe as it is, dropout and all, with a bandit."""
    plain = DistributedDataParallel.__init__

    def written_down(self: DistributedDataParallel, *args: Any, **settings: Any) -> None:
        kept = {name: settings[name] for name in ("gradient_as_bucket_view", "broadcast_buffers")}
        (recipe.parent / f"wrapped-{os.environ['RANK']}.json").write_text(json.dumps(kept))
        plain(self, *args, **settings)

    with patch.object(DistributedDataParallel, "__init__", written_down):
        ended = together(lambda: main(["train", str(recipe), BANDIT, "output.name=whole"]), recipe.parent)
    assert [one.code for one in ended] == [0, 0], ended
    return record_of(recipe, "whole")


def malora(recipe: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "malora_cli", "train", str(recipe), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})


def record_of(recipe: Path, name: str) -> RunRecord:
    return RunRecord(recipe.parent / "runs" / name)


def agree(one: RunRecord, two: RunRecord, start: RunRecord) -> None:
    """The same losses; and weights that lie near each other, measured by how far they have come."""
    for first, second in zip(losses(one), losses(two), strict=True):
        assert first == pytest.approx(second, abs=3e-5)
    first, second, before = (torch.cat([w.flatten() for w in adapter(run).values()]) for run in (one, two, start))
    # AdamW makes steps of one size of gradients of any, so that rounding counts for those that are all but zero.
    assert (first - second).norm() < 0.15 * (first - before).norm()


def test_two_processes_train_as_one(recipe: Path, one: RunRecord, start: RunRecord) -> None:
    result = malora(recipe, *MALORA, "output.name=two", "--nproc", "2")
    assert result.returncode == 0, result.stderr
    told = result.stderr.splitlines()
    assert all(line.endswith(" ...") for line in told), told
    assert told.count("training ...") == 1
    assert result.stdout.count("step 6/6  loss") == 1  # one of them shows it
    two = record_of(recipe, "two")
    assert two.finished
    agree(one, two, start)
    assert [event.step for event in two.metrics.train()] == [1, 2, 3, 4, 5, 6]
    for first, second in zip(one.metrics.train(), two.metrics.train(), strict=True):
        counted = {name: (task.tokens, task.examples) for name, task in first.tasks.items()}
        assert {name: (task.tokens, task.examples) for name, task in second.tasks.items()} == counted
        assert second.balance_loss == pytest.approx(first.balance_loss, rel=1e-2)


def test_shares_and_weights_change_alike_in_every_process(recipe: Path) -> None:
    """The bandit and the learned weights go by the losses of all processes; so does a task's end. PEFT's LoRA here."""
    settings = [*SAME, "remedies.bandit.every=2", "remedies.uncertainty={}"]
    settings += ["remedies.patience.evaluations=2", "train.eval_every=2", "method={name: lora, r: 4, lora_dropout: 0}"]
    one = train_run(recipe, *settings, "output.name=one-adapts")
    ended = together(lambda: main(["train", str(recipe), *settings, "output.name=two-adapts"]), recipe.parent)
    assert [one.code for one in ended] == [0, 0], ended
    two = record_of(recipe, "two-adapts")
    for alone, shared in zip(losses(one), losses(two), strict=True):
        assert alone == pytest.approx(shared, abs=1e-5)
    for first, second in zip(one.metrics.train(), two.metrics.train(), strict=True):
        assert second.task_share == pytest.approx(first.task_share, abs=1e-4)
        assert second.loss_weight == pytest.approx(first.loss_weight, abs=1e-5)
        counted = {name: (task.tokens, task.examples) for name, task in first.tasks.items()}
        assert {name: (task.tokens, task.examples) for name, task in second.tasks.items()} == counted


def test_sharded_weights_train_as_whole_ones_and_resume(recipe: Path, one: RunRecord, start: RunRecord) -> None:
    """FSDP2 in two processes that were killed between: the losses and weights of one process that was not."""
    arguments = ["train", str(recipe), *MALORA, "train.shard=true", "output.name=sharded"]
    assert [one.code for one in together(lambda: dying.run(arguments), recipe.parent)] == [9, 9]
    first, second = together(lambda: main([*arguments, "--resume"]), recipe.parent)
    assert (first.code, second.code) == (0, 0), (first, second)
    assert second.out == ""  # one of them talks
    two = record_of(recipe, "sharded")
    agree(one, two, start)
    for first, second in zip(one.metrics.evals(), two.metrics.evals(), strict=True):
        for task, loss in first.tasks.items():
            assert second.tasks[task].loss == pytest.approx(loss.loss, abs=3e-5)
    assert two.experts_path.exists()


def test_one_process_has_nothing_to_spread(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"train.shard: there is one process, and nothing to spread weights over"):
        train_run(recipe, "output.name=alone", "train.shard=true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"train.conflict_rows: train.shard spreads weights, and gradients of"):
        train_run(recipe, "output.name=alone", "train.shard=true", "train.conflict_rows=2")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(RunError, match=r"DeepSpeed keeps optimiser states as pickles.* train.shard \(FSDP2\) instead"):
        train_run(recipe, "output.name=deep")


def test_a_process_that_dies_ends_all_with_a_line(recipe: Path) -> None:
    """As when the system runs out of memory: one is killed, which cannot say so itself."""
    command = [sys.executable, "-m", "malora_cli", "train", str(recipe), "output.name=dies", "--nproc", "2"]
    command += ["train.steps=100000", "train.eval_every=100000", "train.checkpoint_every=1"]
    record = record_of(recipe, "dies")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while len(record.metrics.train()) < 3:
            time.sleep(0.2)
            assert process.poll() is None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ranks = {_environment(child)["RANK"]: int(child) for child in children if "RANK" in _environment(child)}
        os.kill(ranks["1"], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "error: --nproc: process 2 of 2 died by SIGKILL, and the others were ended. Go on from the newest" in err
    assert "Traceback" not in err
    for rank in ranks.values():
        with pytest.raises(ProcessLookupError):
            os.kill(rank, 0)
    assert checkpoints.newest_intact(record.checkpoints_dir, record.manifest.run_id) is not None


def _environment(process: str) -> dict[str, str]:
    entries = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def test_torchrun_and_a_resumed_run(recipe: Path, whole: RunRecord) -> None:
    """Two processes of torchrun that are killed and resumed end where two do that were not.

    The losses that the bandit has not taken in yet are each process's own.
    """
    command = [sys.executable, *TORCHRUN, dying.__file__, "train", str(recipe), BANDIT, "output.name=killed"]
    ended = subprocess.run(command, capture_output=True, check=False)
    assert b"exitcode  : 9" in ended.stderr, ended.stderr.decode()
    killed = record_of(recipe, "killed")
    assert not killed.finished
    with pytest.raises(RunError, match=r"the run was trained in 2 processes, and these are 1\. Resume it in as many\."):
        train_run(recipe, BANDIT, "output.name=killed", resume=True)
    arguments = ["train", str(recipe), BANDIT, "output.name=killed", "--resume"]
    resumed = together(lambda: main(arguments), recipe.parent)
    assert [one.code for one in resumed] == [0, 0], resumed
    shares = [[event.task_share for event in run.metrics.train()] for run in (whole, killed)]
    assert shares[0] == shares[1]
    assert same_weights(whole, killed)


def test_a_signal_to_the_launcher_saves_the_step(recipe: Path) -> None:
    name = "told"
    command = [sys.executable, "-m", "malora_cli", "train", str(recipe), f"output.name={name}", "--nproc", "2"]
    command += ["train.steps=100000", "train.eval_every=100000", "train.checkpoint_every=100000"]
    record = record_of(recipe, name)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while len(record.metrics.train()) < 3:
            time.sleep(0.2)
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "interrupted: saved at step" in err
    assert "Traceback" not in err
    [checkpoint] = checkpoints.checkpoints(record.checkpoints_dir)
    assert checkpoints.damage(checkpoint) is None


def test_processes_wait_for_hours_while_one_fetches_and_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[dict[str, Any]] = []
    monkeypatch.setattr(processes, "PartialState", lambda **settings: met.append(settings))
    processes.meet()
    assert not met
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError):  # it has met nobody
        processes.meet()
    assert met[0]["timeout"] >= timedelta(hours=6)


def test_more_processes_than_gpus_are_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (processes, launch_module):
        monkeypatch.setattr(module, "own_device", lambda _device: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RunError, match=r"--nproc: got 3, and there are 2 GPUs, one for each process\. Take 2 at most"):
        launch_module.launch(3, ["train", str(recipe)])
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(RunError, match=r"LOCAL_WORLD_SIZE: got 3, and there are 2 GPUs, one for each process"):
        processes.meet()


def test_gradients_are_kept_once_in_each_process(recipe: Path, whole: RunRecord) -> None:
    wrapped = [json.loads((recipe.parent / f"wrapped-{rank}.json").read_text()) for rank in (0, 1)]
    assert wrapped == [{"gradient_as_bucket_view": True, "broadcast_buffers": False}] * 2


def test_what_one_process_cannot_do_is_a_line(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as launched:
        launched.setenv("WORLD_SIZE", "2")
        with pytest.raises(RecipeError, match=r"train\.batch_size: got 9; 2 processes share the rows of a step"):
            train_run(recipe, "output.name=odd", "train.batch_size=9", "train.micro_batch_size=3")
    assert not record_of(recipe, "odd").path.exists()
    refused(["train", str(recipe), "train.stepz=1", "--nproc", "2"], capsys)  # said once, before any is started


def test_a_run_is_still_never_overwritten(recipe: Path, whole: RunRecord) -> None:
    before = whole.manifest
    first, second = together(lambda: main(["train", str(recipe), "output.name=whole"]), recipe.parent)
    assert first.code == 2
    assert second.code != 0  # the first is gone, by whichever line that is met
    assert "this run folder exists already" in first.out
    assert "Traceback" not in first.out + second.out
    assert whole.manifest == before
