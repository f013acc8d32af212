"""What commands say beside their results: phases in a pipe, more under ``--verbose``, nothing under ``--quiet``."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import write_mix, write_recipe
from malora_cli.cli import main

Said = Callable[..., tuple[str, str]]
PHASE = re.compile(r"(.+) \.\.\.")


@pytest.fixture(autouse=True)
def _phases() -> Iterator[None]:
    logging.disable(logging.NOTSET)
    yield
    logging.disable(logging.INFO)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("voice")
    write_recipe(folder, tiny_model, write_mix(folder))
    return folder


@pytest.fixture
def said(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """Runs a command; gives back what it wrote on standard output and standard error."""
    monkeypatch.chdir(home)

    def run(*arguments: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        told = capsys.readouterr()
        assert ended.value.code in (0, None), told.err
        return told.out, told.err

    return run


def phases(errors: str) -> list[str]:
    return [match[1] for line in errors.splitlines() if (match := PHASE.fullmatch(line))]


def test_a_pipe_hears_what_each_command_does_before_it_takes_time(said: Said) -> None:
    _, errors = said("train", "tiny.yaml", "train.steps=1", "output.name=first")
    heard = [re.sub(r"loading /.*", "loading MODEL", phase) for phase in phases(errors)]
    assert heard == [
        "loading libraries",
        "reading the data",
        "loading MODEL",
        "adding the adapter",
        "measuring the longest step",
        "training",
        "measuring the validation rows",
        "measuring the validation rows",
        "comparing the experts",
        "writing the report",
    ]
    _, errors = said("check", "tiny.yaml")
    assert phases(errors)[:2] == ["loading libraries", "reading the data"]
    assert phases(errors)[-1] == "measuring the longest step"
    out, errors = said("eval", "first", "--limit", "1", "--tasks", "add", "--json")
    assert phases(errors)[:2] == ["loading libraries", "reading the data"]
    assert "adapter: add: 1 row" in phases(errors)
    assert out.startswith("{")
    _, errors = said("merge-export", "first", "--to", "lora", "--no-verify", "--gates", "uniform")
    assert phases(errors)[0] == "loading libraries"
    assert phases(errors)[-1].startswith("writing lora")


def test_quiet_leaves_the_result(said: Said) -> None:
    out, errors = said("--quiet", "train", "tiny.yaml", "train.steps=1", "output.name=quiet")
    assert errors == ""
    assert [line.split(":")[0] for line in out.splitlines()] == ["run", "adapter", "report", "next"]


def test_verbose_says_how_long_each_phase_takes(said: Said) -> None:
    _, errors = said("-v", "train", "tiny.yaml", "train.steps=1", "output.name=verbose")
    begun = phases(errors)
    ended = re.findall(r"^(.+): \d+\.\d s$", errors, re.MULTILINE)
    assert ended == begun
    assert begun.count("training") == 3  # and again behind both evaluations


def test_quiet_and_verbose_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["-q", "-v", "methods"])
    assert capsys.readouterr().err == "error: --quiet: it says the opposite of --verbose. Leave one of them out.\n"
