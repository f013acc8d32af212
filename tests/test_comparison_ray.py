"""`malora compare baselines --on ray`, on a Ray of this machine."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from malora_cli.results.comparison import Comparison
from test_comparison import baselines, figures, folder_of
from train_runs import refused, workplace

ASKED = ("--methods", "lora,malora", "--seeds", "0", "--tune", "none")


def kill_once_saved(run: Path) -> None:
    """Kill the process that trains a run as soon as there is a checkpoint."""
    while not list(run.glob("checkpoints/*/trainer_state.json")):
        time.sleep(0.01)
    log = run.with_name(f"{run.name}.log")
    [process] = [int(it.name) for it in Path("/proc").iterdir() if it.name.isdigit() and writes_to(it, log)]
    os.kill(process, signal.SIGKILL)


def writes_to(process: Path, file: Path) -> bool:
    try:
        return process.name != str(os.getpid()) and any(it.samefile(file) for it in (process / "fd").iterdir())
    except OSError:
        return False


def test_a_comparison_on_ray_is_that_of_one_process(
    tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    there, here = (workplace(tmp_path / name, tiny_model) for name in ("there", "here"))
    lost = there.parent / "runs" / "tiny-malora-seed0"
    killer = threading.Thread(target=kill_once_saved, args=(lost,), daemon=True)
    killer.start()
    assert baselines(there, *ASKED, "--on", "ray") == 0
    assert not killer.is_alive()
    assert "tiny-lora-seed0: handed to Ray" in capfd.readouterr().out
    assert "step 3/3" in lost.with_name(f"{lost.name}.log").read_text(encoding="utf-8")
    assert baselines(here, *ASKED) == 0
    on_ray, plain = (figures(Comparison.load(folder_of(recipe))) for recipe in (there, here))
    assert on_ray == plain


def test_what_keeps_runs_from_ray(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["compare", "baselines", str(workplace(tmp_path, tiny_model)), *ASKED, "--on", "ray"]
    line = refused([*asked, "--jobs", "2"], capsys)
    assert "--jobs: on Ray, as many runs are trained at a time as the cluster has room for" in line
    monkeypatch.setitem(sys.modules, "ray", None)
    line = refused(asked, capsys)
    assert "--on ray: Ray is not installed. pip install 'malora[ray]'" in line
