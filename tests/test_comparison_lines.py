"""What is left to do of a comparison, and what stops it: lines for a cluster, trials that ended, processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from malora_cli.cli import main
from malora_cli.cli._comparison import missing_lines
from malora_cli.compare import jobs
from malora_cli.compare.asked import Asked
from malora_cli.compare.baselines import Study
from malora_cli.compare.matching import matched_ranks
from malora_cli.compare.outcome import UnlikeError
from malora_cli.compare.planner import Errand, PlannedRun, Planner
from malora_cli.compare.run import Crew, whole_evaluation
from malora_cli.errors import StoppedError
from malora_cli.named import vocabulary
from malora_cli.results import RunRecord, write_json
from malora_cli.train.run import train
from train_runs import SilentView, rewrite, train_run, workplace

QUICK = ("train.steps=3", "train.eval_every=3", "train.checkpoint_every=1", "eval.rows=4")
LORA_AND_MALORA = ["lora", "malora"]


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    return workplace(tmp_path / "work", tiny_model)


def planner_of(recipe: Path, *overrides: str) -> Planner:
    return Planner(recipe, [*QUICK, *overrides], {}, vocabulary())


def test_lines_say_what_code_may_run_and_which_task_is_alone(recipe: Path) -> None:
    asked = Asked(
        recipe, [*QUICK, "model.trust_remote_code=true"], "0", "none", None, "loss", 0.01, [], single_task=True
    )
    planner, plan = asked.of_methods(LORA_AND_MALORA)
    lines = missing_lines(planner, plan, "report", allow_code=True)
    assert len(lines) == 2 + 3
    for line in lines:
        train, evaluate = line.split(" && ")
        assert train.startswith("malora train ")
        assert evaluate.endswith(" --trust-remote-code --allow-code")
    alone = [line for line in lines if "-lora-only-" in line]
    assert [line.split(" --tasks ")[1].split()[0] for line in alone] == ["copy", "upper", "add"]
    assert not any("--allow-code" in line for line in missing_lines(planner, plan, "report"))


def test_only_a_trial_that_ended_in_nan_is_not_tried_again(recipe: Path) -> None:
    def rates(left: list[str]) -> list[str]:
        return [line.split("train.learning_rate=")[1].split()[0] for line in left if "method.name=lora" in line]

    asked = Asked(recipe, [*QUICK], "0", "lr=0.001,0.003", None, "loss", 0.01, [])
    planner, plan = asked.of_methods(LORA_AND_MALORA)
    before = missing_lines(planner, plan, "tune")
    assert len(before) == 4
    halted = RunRecord(planner.trial("lora", plan.tuning_seed, 0.001).folder)
    halted.trouble_dir.mkdir(parents=True)
    assert len(missing_lines(planner, plan, "tune")) == 4, "a step may have been skipped, and training gone on"
    write_json(halted.diverged_path, {"why": "NaN"})
    assert len(missing_lines(planner, plan, "tune")) == 3


def test_a_trial_that_diverged_in_a_process_of_its_own_is_not_tried_again(recipe: Path) -> None:
    planner, plan = Asked(recipe, [*QUICK], "0", "lr=0.001,0.003", None, "loss", 0.01, []).of_methods(LORA_AND_MALORA)
    halted, told = RunRecord(planner.trial("lora", plan.tuning_seed, 0.003).folder), list[str]()

    handed: list[str] = []

    def elsewhere(errands: Sequence[Errand], look_at: Callable[[PlannedRun], None]) -> None:
        for errand in errands:
            handed.append(errand.run.name)
            if errand.run.folder == halted.path:
                write_json(halted.diverged_path, {"why": "NaN in step 2"})
            elif handed[-1] == "tiny-malora-rate0.001-seed1000":
                raise StoppedError("in the middle", signal.SIGTERM)
            look_at(errand.run)

    with pytest.raises(StoppedError):
        Study(planner, plan).carried_out(Crew(SilentView, told.append, side_by_side=elsewhere))
    assert handed[-1] == "tiny-malora-rate0.001-seed1000"
    crew = Crew(SilentView, told.append, side_by_side=lambda errands, _: handed.extend(it.run.name for it in errands))
    comparison, _ = Study(planner, plan).carried_out(crew)
    [trial] = [trial for trial in comparison.trials if trial.run == halted.name]
    assert (trial.loss, trial.why, trial.diverged) == (None, "NaN in step 2", True)
    assert handed.count(halted.name) == 1
    assert not any(halted.name in line for line in told)
    assert not halted.exists


def test_a_reported_run_that_diverged_in_a_process_of_its_own_is_not_gone_on_with_here(recipe: Path) -> None:
    planner, plan = Asked(recipe, [*QUICK], "0", "none", None, "loss", 0.01, []).of_methods(LORA_AND_MALORA)
    told = list[str]()

    def elsewhere(errands: Sequence[Errand], look_at: Callable[[PlannedRun], None]) -> None:
        write_json(RunRecord(errands[1].run.folder).diverged_path, {"why": "NaN in step 2"})
        look_at(errands[1].run)

    comparison, _ = Study(planner, plan).carried_out(Crew(SilentView, told.append, side_by_side=elsewhere))
    [failure] = comparison.failures
    assert (failure.method, failure.why) == ("malora", "NaN in step 2")


def test_runs_side_by_side_end_at_the_first_of_other_rows(recipe: Path) -> None:
    planner, plan = Asked(recipe, [*QUICK], "0,1", "none", None, "loss", 0.01, []).of_methods(LORA_AND_MALORA)
    done: list[str] = []

    def elsewhere(errands: Sequence[Errand], look_at: Callable[[PlannedRun], None]) -> None:
        for errand in errands:
            record = train(errand.run.loaded, SilentView())
            done.append(record.name)
            if len(done) == 2:
                rewrite(record.manifest_path, lambda found: found["train_data"]["add"].update(sha256="0" * 64))
            look_at(errand.run)

    with pytest.raises(UnlikeError, match=r"tiny-malora-seed0: its train rows are not those of .*tiny-lora-seed0"):
        Study(planner, plan).carried_out(Crew(SilentView, lambda _: None, side_by_side=elsewhere))
    assert done == ["tiny-lora-seed0", "tiny-malora-seed0"]


def test_what_runs_are_evaluated_by_is_said_to_their_processes(recipe: Path) -> None:
    [lora, _] = planner_of(recipe).runs(LORA_AND_MALORA, [0])
    assert lora.eval_command(allow_code=False) == ["malora", "eval", str(lora.folder)]
    train(lora.loaded, SilentView())
    assert lora.eval_command(allow_code=False) == ["malora", "eval", str(lora.folder)]
    [other, _] = planner_of(recipe, "eval.rows=2", "eval.batch_size=1").runs(LORA_AND_MALORA, [0])
    command = other.eval_command(allow_code=True)
    assert command == ["malora", "eval", str(lora.folder), "eval.rows=2", "eval.batch_size=1", "--allow-code"]
    with pytest.raises(SystemExit) as caught:
        main(command[1:])
    assert not caught.value.code
    assert whole_evaluation(other, RunRecord(other.folder)) is not None
    assert whole_evaluation(lora, RunRecord(lora.folder)) is None


def test_a_run_that_diverges_says_so_in_its_folder(recipe: Path) -> None:
    from malora_cli.errors import DivergedError

    with pytest.raises(DivergedError) as caught:
        train_run(recipe, *QUICK, "train.learning_rate=1e30", "train.max_grad_norm=0", "train.warmup_ratio=0")
    [mark] = (recipe.parent / "runs").glob("*/diverged.json")
    assert str(caught.value) in mark.read_text(encoding="utf-8")


@pytest.mark.parametrize(("method", "power"), [("rslora", 0.5), ("dora", 1.0)])
def test_the_scale_stays_where_the_rank_is_matched(recipe: Path, method: str, power: float) -> None:
    planner = planner_of(recipe, "method={name: lora, r: 32}")
    [matched] = matched_ranks(planner, ["lora", method], "lora").values()
    changed = dict(override.removeprefix("method.").split("=") for override in matched.overrides)
    own = planner.run(method, 0).loaded.recipe.method.model_dump()
    scale = own["lora_alpha"] / own["r"] ** power
    assert float(changed["lora_alpha"]) / float(changed["r"]) ** power == pytest.approx(scale)
    assert int(changed["r"]) != own["r"]


@pytest.mark.parametrize(
    ("named", "found"),
    [(None, ["0", "1", "2"]), ("", []), ("0, 2,", ["0", "2"]), ("1,-1,0", ["1"]), ("MIG-a,GPU-b", ["MIG-a", "GPU-b"])],
)
def test_gpus_are_those_that_cuda_sees(named: str | None, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert jobs.gpus() == jobs.gpus("cuda") == found
    assert jobs.gpus("cpu") == []


def unseen(_run: PlannedRun) -> None:
    raise AssertionError("it was told to stop")


def told_to_stop(process: Path, script: str, runs: list[PlannedRun]) -> tuple[StoppedError, list[str]]:
    """What comes of runs in two processes that a script stands for, stopped when both are under way; what was said."""
    process.write_text(f"#!/bin/sh\n{script}\nsleep 60 & wait\n")
    process.chmod(0o755)
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()

    errands = [Errand(run, train=True, evaluate=True) for run in runs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs.sys, "executable", str(process))
        with pytest.raises(StoppedError) as caught:
            jobs.in_processes(errands, unseen, jobs=2, tell=tell)
    return caught.value, said


def test_no_evaluation_is_begun_of_a_run_that_ended_as_it_was_told_to_stop(recipe: Path, tmp_path: Path) -> None:
    process = tmp_path / "process"
    script = "trap 'kill $!; exit 0' TERM\necho \"$3\" >> $0.began"
    told_to_stop(process, script, planner_of(recipe).runs(LORA_AND_MALORA, [0]))
    assert Path(f"{process}.began").read_text() == "train\n" * 2


def test_a_signal_ends_the_runs_side_by_side(recipe: Path, tmp_path: Path) -> None:
    training = tmp_path / "training"
    script = "trap 'kill $!; echo told >> $0.told; exit 143' TERM"
    stopped, said = told_to_stop(training, script, planner_of(recipe).runs(["lora", "malora", "dora"], [0]))
    assert stopped.exit_code == 128 + signal.SIGTERM
    assert Path(f"{training}.told").read_text() == "told\n" * 2
    assert not any("dora" in line for line in said), "no other is begun"
