"""The mistakes of `mistakes.yaml`: each is told by exactly the line that stands there, and leaves nothing behind."""

from __future__ import annotations

import io
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from malora_cli.cli import _application, main
from train_runs import train_run

FILE = Path(__file__).with_name("mistakes.yaml")
ALL = yaml.load(FILE.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
MISTAKES: dict[str, dict[str, Any]] = {mistake["name"]: mistake for mistake in ALL["mistakes"]}
#: What no line has: Python's names for things.
PYTHON = r"NoneType|\b(str|dict|NoneType)\b|<class|ValidationError|\w+Error\b|object at 0x|Traceback"
#: Longest line, with the folder masked.
LONGEST = 200


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The folder that every mistake is made in a copy of: a recipe, its mix and rows, a model and a finished run."""
    folder = tmp_path_factory.mktemp("mistakes") / "work"
    shutil.copytree(tiny_model, folder / "model")
    for name, text in ALL["folder"].items():
        (folder / name).write_text(text, encoding="utf-8")
    train_run(folder / "recipe.yaml", "output.name=done", "train.steps=1", f"output.folder={folder / 'runs'}")
    shutil.copytree(folder, kept := folder.with_name("kept"))
    return kept


@pytest.fixture
def work(template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, at the place of which its run knows."""
    folder = template.with_name("work")
    shutil.rmtree(folder)
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def command() -> Any:
    return typer.main.get_command(_application())


@pytest.fixture(autouse=True)
def _quick_and_in_a_pipe(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line is put together once: that takes as long as most mistakes do."""
    monkeypatch.setattr("malora_cli.cli._application", lambda: None)
    monkeypatch.setattr("typer.main.get_command", lambda _: command)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n"), encoding="utf-8"))


def prepare(mistake: dict[str, Any], folder: Path) -> None:
    """Do what the person did before the command."""
    for name in mistake.get("remove", ()):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, content in mistake.get("write", {}).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, changes in mistake.get("edit", {}).items():
        text = (folder / name).read_text(encoding="utf-8")
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (folder / name).write_text(text, encoding="utf-8")


def carry_out(mistake: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str], str]:
    """Exit code, lines of standard error with the folder masked, and standard output."""
    program, *arguments = shlex.split(mistake["run"])
    assert program == "malora"
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    told = capsys.readouterr()
    return int(caught.value.code or 0), told.err.replace(f"{folder}", "…").splitlines(), told.out


def state(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("name", MISTAKES)
def test_it_is_told_by_this_line_and_nothing_stays(name: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mistake = MISTAKES[name]
    prepare(mistake, work)
    before = state(work)
    code, lines, out = carry_out(mistake, work, capsys)
    assert lines == mistake["says"]
    assert code == mistake.get("code", 2)
    if code == 2:
        assert out == mistake.get("prints", "")
        assert state(work) == before


@pytest.mark.parametrize("name", MISTAKES)
def test_a_line_is_short_and_plain(name: str) -> None:
    for line in MISTAKES[name]["says"]:
        assert re.match(r"(error|warning|interrupted): \S", line)
        assert not re.search(PYTHON, line)
        assert len(line) < LONGEST or MISTAKES[name].get("long")


def test_every_mistake_has_a_name_of_its_own_and_a_sentence() -> None:
    assert len(MISTAKES) == len(ALL["mistakes"]) >= 80
    sentences = [mistake["did"] for mistake in MISTAKES.values()]
    assert len({*sentences}) == len(sentences)
    assert [it for it in sentences if not re.fullmatch(r"[A-Z].*[^.]", it)] == []
    assert {mistake["area"] for mistake in MISTAKES.values()} == set(ALL["areas"])
