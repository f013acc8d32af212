"""``malora doctor``: what it finds where something is wrong, and that a broken torch does not take it along."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import psutil
import pytest

import malora_cli
from json_output import assert_documented
from malora_cli.cli import main
from malora_cli.doctor import checks
from malora_cli.doctor.checks import Check, checked
from malora_cli.doctor.machine import cores, memory
from train_runs import load, train_run, workplace

BROKEN = {
    "raises": ("raise ImportError('libcudart.so.12: cannot open shared object file')", r"libcudart\.so\.12: cannot"),
    "aborts": ("import os; os.abort()", r"it cannot be imported: exit code -6"),
    "says nothing": ("import sys; sys.exit(0)", r"it cannot be imported: exit code 0"),
    "talks nonsense": ("print('hello')\nraise SystemExit", r"it cannot be imported: hello"),
    "never comes back": ("import time; time.sleep(60)", r"its import takes more than 1 s"),
}


@pytest.fixture(autouse=True)
def _no_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test says what the torch of the child is; else it is one that is there."""
    put_torch(tmp_path / "fine", "__version__ = '9.9'\n" + STUB, monkeypatch)


STUB = """
class _Version: cuda = None
class _Cuda:
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    get_device_name = staticmethod(lambda at: f"Card {at}")
    mem_get_info = staticmethod(lambda at: (1, 80 * 2**30))
    is_bf16_supported = staticmethod(lambda including_emulation: True)
class _Mps: is_available = staticmethod(lambda: False)
class _Backends: mps = _Mps
class _Cpu: _is_avx512_bf16_supported = _is_amx_tile_supported = staticmethod(lambda: False)
class _Mkldnn: _is_mkldnn_bf16_supported = staticmethod(lambda: False)
class _Ops: mkldnn = _Mkldnn
version, cuda, backends, cpu, ops = _Version, _Cuda, _Backends, _Cpu, _Ops
def get_num_threads(): return 3
"""


def put_torch(place: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir()
    (place / "torch.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), str(Path(malora_cli.__file__).parents[1])]))


def found(runs: Path) -> dict[str, Check]:
    return {check.id: check for check in checked(runs)}


def test_a_torch_that_works_is_described(tmp_path: Path) -> None:
    told = found(tmp_path)
    assert told["torch"] == Check("torch", "ok", "9.9, 3 threads")
    assert told["device.cuda"] == Check("device.cuda", "ok", "Card 0, 80 GiB")
    assert told["device.triton"].status == "note"  # this torch has nothing to compute with
    assert "its kernels are not used: " in told["device.triton"].found
    assert told["model.dtype"] == Check("model.dtype", "ok", "auto is bfloat16 here")
    assert {"python", "malora", "peft", "threads", "memory", "runs.writable", "base.embedded"} <= told.keys()


def test_kernels_of_triton_that_work_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = "unasked = failing = lambda *_: ''"
    stub = f"import sys, types\nfast = types.ModuleType('fast')\nexec({kernels!r}, vars(fast))\n"
    stub += "sys.modules['malora_cli.adapters.entrywise'] = fast\n"
    put_torch(tmp_path / "with", "__version__ = '9.9'\ndevice = lambda *_: None\n" + stub + STUB, monkeypatch)
    assert found(tmp_path)["device.triton"].status == "ok"


def test_a_processor_that_does_not_compute_in_bfloat16_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_card = STUB.replace("is_available = staticmethod(lambda: True)", "is_available = staticmethod(lambda: False)")
    put_torch(tmp_path / "without", "__version__ = '9.9'\n" + no_card, monkeypatch)
    lacks = found(tmp_path)["model.dtype"]
    assert (lacks.status, lacks.found) == ("note", "auto is float32 here; the processor does not compute in bfloat16")
    assert "Leave it at auto" in lacks.do


@pytest.mark.parametrize("case", BROKEN)
def test_a_torch_that_does_not_is_a_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, message = BROKEN[case]
    put_torch(tmp_path / "broken", code, monkeypatch)
    monkeypatch.setattr(checks, "_TORCH_SECONDS", 1 if case == "never comes back" else 60)
    told = found(tmp_path)
    assert told["torch"].status == "fail"
    assert re.search(message, told["torch"].found)
    assert "pip install" in told["torch"].do
    assert "device.cuda" not in told


def test_packages_that_are_missing_or_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = checks._version
    monkeypatch.setattr(checks, "_version", lambda name: {"peft": "0.1", "typer": None}.get(name, plain(name)))
    told = found(tmp_path)
    assert told["peft"].status == told["typer"].status == "fail"
    assert told["peft"].found.startswith("0.1; needed: peft")
    assert "<0.22" in told["peft"].do
    assert told["typer"].found.startswith("not installed; needed: typer>=")


def test_more_threads_than_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4000")
    told = found(tmp_path)["threads"]
    assert told.status == "warn"
    assert re.fullmatch(r"Set OMP_NUM_THREADS=[1-9]\d*\.", told.do)


def test_a_container_has_less_than_its_machine(tmp_path: Path) -> None:
    assert cores(tmp_path) >= 1
    assert memory(tmp_path)[0] == psutil.virtual_memory().total
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert cores(tmp_path) == 0.5
    assert memory(tmp_path) == (1000, 600)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert cores(tmp_path) >= 1
    assert memory(tmp_path)[0] == psutil.virtual_memory().total


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = found(tmp_path / "file" / "runs")["runs.writable"]
    assert told.status == "fail"
    assert told.do == "Name another folder: output.folder."


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def status(*arguments: str) -> int:
        with pytest.raises(SystemExit) as caught:
            main(["doctor", "--runs", str(tmp_path / "runs"), *arguments])
        return int(str(caught.value.code))

    assert status() == 0
    assert re.search(r"^ok +torch +9\.9, 3 threads", capsys.readouterr().out, re.MULTILINE)
    assert status("--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert_documented("malora doctor", told)
    assert {"id": "torch", "status": "ok", "found": "9.9, 3 threads", "do": ""} in told["checks"]
    assert not (tmp_path / "runs").exists(), "nothing is written"
    put_torch(tmp_path / "broken", "raise ImportError('x')", monkeypatch)
    assert status("--json") == 2


# ---------------------------------------------------------------- of a recipe, and for a bug report


def of_recipe(recipe: Path, *overrides: str) -> dict[str, Check]:
    from malora_cli.doctor.recipe import of_recipe

    return {check.id: check for check in of_recipe(load(recipe, *overrides).recipe)}


def test_a_recipe_that_can_be_trained_here(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = workplace(tmp_path, tiny_model)
    told = of_recipe(recipe)
    assert told["recipe.data"] == Check("recipe.data", "ok", "3 tasks")
    assert re.search(r"[\d,]+ parameters, [\d,]+ trainable", told["recipe.base"].found)
    assert told["recipe.memory"].status == "ok"
    monkeypatch.setattr("malora_cli.doctor.recipe.memory", lambda: (2**20, 2**10))
    assert of_recipe(recipe)["recipe.memory"].status == "fail"


def test_what_a_recipe_lacks_here(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    recipe = workplace(tmp_path, tiny_model)
    mix = "mix.tasks.copy.train"
    assert of_recipe(recipe, f"{mix}=gone.jsonl")["recipe.data"].status == "fail"
    assert "copy: " in of_recipe(recipe, f"{mix}=gone.jsonl")["recipe.data"].found
    absent = of_recipe(recipe, f"{mix}=nobody/nothing-of-the-kind", "model.base=nobody/none-of-the-kind")
    assert [absent[name].status for name in ("recipe.data", "recipe.base")] == ["note", "note"]
    assert "downloaded" in absent["recipe.base"].do
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert of_recipe(recipe, "model.base=nobody/none-of-the-kind")["recipe.base"].status == "fail"
    assert "folder not found" in of_recipe(recipe, "model.base=./gone")["recipe.base"].found


def test_a_bundle_says_nothing_of_its_machine(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home" / "somebody"
    secrets = {"HUB_TOKEN": "tok-123456", "S3_SECRET": "quite-secret", "API_KEY": "key-key-key"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.setattr("malora_cli.doctor.bundle.platform.node", lambda: "box-of-somebody")
    hidden = " ".join([*secrets.values(), "hf_abcdefgh1234", "https://me:pass@host/x", "box-of-somebody"])
    run = train_run(workplace(home / "work", tiny_model), "train.steps=2", f"mix.description={hidden}")
    file = tmp_path / "report.json"
    with pytest.raises(SystemExit):
        main(["doctor", "--bundle", str(file), "--runs", str(run.path.parent)])
    assert f"run {run.name}: manifest, recipe, newest log events" in capsys.readouterr().out
    written = file.read_text(encoding="utf-8")
    found = json.loads(written)
    assert found["manifest"]["steps"] == 2
    assert found["newest log events"][-1]["step"] == 2
    assert found["recipe"]["mix"]["description"] == "$HUB_TOKEN $S3_SECRET $API_KEY hf_... https://host/x HOST"
    assert str(home) not in written
    assert "~/work/" in written
    rows = [json.loads(line) for line in (home / "work" / "copy.train.jsonl").read_text().splitlines()]
    assert not any(value in written for row in rows for value in row.values() if len(value) > 4)


def test_a_bundle_of_a_damaged_run_says_so(tmp_path: Path, tiny_model: Path) -> None:
    from malora_cli.doctor import write_bundle

    run = train_run(workplace(tmp_path, tiny_model), "train.steps=1")
    run.manifest_path.write_text("{", encoding="utf-8")
    write_bundle(tmp_path / "report.json", [], run)
    assert "manifest" in json.loads((tmp_path / "report.json").read_text())["manifest"]
