"""The shell of the command line, and ``malora recipes``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import typer
from pydantic import Field

import malora_cli.cli
from json_output import assert_documented
from malora_cli import named
from malora_cli.cli import _common, main
from malora_cli.errors import DataError, RecipeError
from malora_cli.recipe import MethodSettings, MetricSettings, Vocabulary, load_recipe, shipped_files

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate", "matplotlib", "evaluate", "sacrebleu", "scipy")

RECIPE = """\
# one small sum
model: {base: tiny}
method: {name: wide}
mix:
  tasks:
    plus: {domain: sums, train: a/b, test: a/b, format: prompt-completion, metric: exact-match}
train: {steps: 3}
"""


class Wide(MethodSettings):
    name: Literal["wide"] = Field(description="one rank")
    r: int = Field(default=8, description="rank")


VOCABULARY = Vocabulary({"wide": Wide}, ["prompt-completion"], {"exact-match": MetricSettings})

MIX = "# sums\ntasks: {plus: {train: rows.jsonl, test: {path: owner/on-the-hub}}}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in; the shipped recipes are two of our own."""
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "plus.yaml").write_text(RECIPE)
    (shipped / "bracket.yaml").write_text("# [bold]as written[/bold]\nmodel: {}\n")
    mixes = tmp_path / "mixes"
    (mixes / "own").mkdir(parents=True)
    (mixes / "own" / "rows.jsonl").write_text("{}\n")
    (mixes / "own" / "sums.yaml").write_text(MIX)
    (mixes / "plus.yaml").write_text("# of the same name\ntasks: {}\n")
    monkeypatch.setattr(
        "malora_cli.recipe.packaged.shipped", lambda kind: {"recipes": shipped, "data_mixes": mixes}[kind]
    )
    monkeypatch.setattr(named, "vocabulary", lambda: VOCABULARY)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "COLUMNS": "80"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Puts one more command, ``malora act``, beside those that are discovered."""
    whole = malora_cli.cli._application

    def add(act: Callable[[], None]) -> None:
        def application() -> typer.Typer:
            app = whole()
            app.command("act")(act)
            return app

        monkeypatch.setattr(malora_cli.cli, "_application", application)

    return add


# ---------------------------------------------------------------- the shell


def test_help_is_light() -> None:
    code = (
        "import sys\n"
        "from malora_cli.cli import main\n"
        "try:\n    main(['--help'])\n"
        f"finally:\n    print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)\n"
    )
    result = in_a_process("-c", code)
    assert result.returncode == 0
    assert result.stderr.strip() == "[]"
    assert "recipes" in result.stdout
    assert "--debug" in result.stdout
    assert "--install-completion" not in result.stdout


def test_the_module_is_the_command() -> None:
    result = in_a_process("-m", "malora_cli", "recipes", "--help")
    assert result.returncode == 0
    assert "Usage: malora recipes" in result.stdout


def test_every_command_says_what_it_does_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    root = typer.main.get_command(malora_cli.cli._application())
    pending = [((), root)]
    seen = []
    while pending:
        path, found = pending.pop()
        inner = getattr(found, "commands", None)
        if inner is not None:
            pending += [((*path, name), command) for name, command in inner.items()]
            continue
        assert run(*path, "--help") == 0
        after_usage = capsys.readouterr().out.partition("Usage:")[2].partition("\n")[2]
        assert f"Example: malora {' '.join(path)}" in " ".join(after_usage.split()), path
        seen.append(path)
    assert {("recipes", "ls"), ("recipes", "cp"), ("recipes", "schema")} <= set(seen)


def test_every_module_of_the_folder_is_a_command() -> None:
    folder = Path(malora_cli.cli.__file__).parent
    modules = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert "recipes" in modules
    for name in modules:
        assert callable(getattr(__import__(f"malora_cli.cli.{name}", fromlist=["register"]), "register", None)), name


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"malora": "1.2.3"}[name])
    assert run("--version") == 0
    assert capsys.readouterr().out == "malora 1.2.3\n"


def test_a_mendable_error_is_its_message_and_exit_code_2(
    command: Callable[[Callable[[], None]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/data/" + "very-long-folder/" * 20 + "[bold]rows[/bold].jsonl:7"

    def act() -> None:
        raise DataError("column not found: 'prompt'", where=path, fix="Map it.")

    command(act)
    assert run("act") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {path}: column not found: 'prompt'. Map it.\n"


def test_each_line_of_an_error_is_marked(
    command: Callable[[Callable[[], None]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def act() -> None:
        raise RecipeError("first\nsecond")

    command(act)
    assert run("act") == 2
    assert capsys.readouterr().err == "error: first\nerror: second\n"


def test_a_bug_is_one_line_and_exit_code_1(
    command: Callable[[Callable[[], None]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def act() -> None:
        raise ZeroDivisionError("by [zero]")

    command(act)
    assert run("act") == 1
    assert capsys.readouterr().err == (
        "internal error: ZeroDivisionError: by [zero] (run `malora --debug ...` for the traceback)\n"
    )


@pytest.mark.parametrize(("error", "code"), [(RecipeError("wrong"), 2), (ValueError("bug"), 1)])
def test_debug_shows_the_traceback(
    error: Exception,
    code: int,
    command: Callable[[Callable[[], None]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def act() -> None:
        raise error

    command(act)
    assert run("--debug", "act") == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] in ("error: wrong", "internal error: ValueError: bug")


def test_an_interrupt_is_130(command: Callable[[Callable[[], None]], None]) -> None:
    def act() -> None:
        raise KeyboardInterrupt

    command(act)
    assert run("act") == 130


def test_usage_errors_are_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipez") == 2
    assert "recipes" in capsys.readouterr().err
    assert run("recipes", "cp") == 2
    assert run("--nope") == 2


# ---------------------------------------------------------------- malora recipes


def test_ls_shows_names_and_descriptions_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes", "ls") == 0
    lines = [line.strip().split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:3] == [["bracket", "[bold]as written[/bold]"], ["plus", "one small sum"]]
    assert [line[0] for line in lines[3:]] == ["mix", "data_mixes/own/sums", "data_mixes/plus"]


def test_cp_brings_a_mix_and_the_rows_beside_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("own/sums", "data_mixes/own/sums"):
        (folder / "data").mkdir()
        assert run("recipes", "cp", name, "data") == 0
        assert capsys.readouterr().out == "Wrote data/sums.yaml. In a recipe: mix: data/sums.yaml\n"
        assert (folder / "data" / "sums.yaml").read_text() == MIX
        assert (folder / "data" / "rows.jsonl").read_text() == "{}\n"
        (folder / "data" / "sums.yaml").unlink()
        assert run("recipes", "cp", name, "data") == 2
        assert "data/rows.jsonl: the file exists already. Choose another name, such as" in capsys.readouterr().err
        assert not (folder / "data" / "sums.yaml").exists()
        shutil.rmtree(folder / "data")
    assert run("recipes", "cp", "data_mixes/plus") == 0
    assert (folder / "plus.yaml").read_text().startswith("# of the same name")


def test_cp_writes_the_recipe_that_train_reads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes", "cp", "plus") == 0
    assert capsys.readouterr().out == "Wrote plus.yaml. Train it with: malora train plus.yaml\n"
    assert (folder / "plus.yaml").read_text() == RECIPE
    assert run("recipes", "cp", "plus", "new/mine.yaml") == 0
    assert (folder / "new" / "mine.yaml").read_text() == RECIPE
    assert run("recipes", "cp", "plus", "new") == 0
    assert (folder / "new" / "plus.yaml").read_text() == RECIPE


def test_cp_never_overwrites(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "plus.yaml").write_text("mine")
    (folder / "plus-2.yaml").write_text("mine too")
    assert run("recipes", "cp", "plus") == 2
    assert capsys.readouterr().err == (
        "error: plus.yaml: the file exists already. "
        "Choose another name, such as `malora recipes cp plus plus-3.yaml`.\n"
    )
    assert (folder / "plus.yaml").read_text() == "mine"


def test_cp_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes", "cp", "pluss") == 2
    assert capsys.readouterr().err == "error: recipe 'pluss' not found among the shipped ones; did you mean 'plus'?\n"


def test_cp_into_a_file_as_if_it_were_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "file").touch()
    assert run("recipes", "cp", "plus", "file/mine.yaml") == 2
    assert capsys.readouterr().err.startswith("error: file/mine.yaml: ")


def test_recipes_and_mixes_are_listed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes", "ls", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert_documented("malora recipes ls", told)
    assert told["recipes"]["plus"]["description"] == "one small sum"


def test_schema_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes", "schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["required"] == ["model", "method", "mix", "train"]
    assert schema["$defs"]["TaskSettings"]["properties"]["metric"]["anyOf"][0]["enum"] == ["exact-match"]


def test_a_recipe_is_named_by_its_path_or_its_shipped_name(folder: Path) -> None:
    (folder / "mine.yaml").write_text(RECIPE)
    assert _common.read_recipe("mine.yaml").path == Path("mine.yaml")
    shipped = _common.read_recipe("plus", ["train.steps=7"])
    assert shipped.name == "plus"
    assert shipped.recipe.train.steps == 7
    (folder / "plus").mkdir()  # a folder of that name, such as one of runs, is not meant
    assert _common.read_recipe(Path("plus")).recipe == _common.read_recipe("plus").recipe
    (folder / "plain").write_text(RECIPE)
    assert _common.read_recipe("plain").name == "plain"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pluss", "recipe 'pluss' not found, neither as a file nor among the shipped ones; did you mean 'plus'?"),
        ("no.yaml", "no.yaml: file not found. `malora recipes ls`"),
        ("here/plus", "here/plus: file not found. `malora recipes ls`"),
    ],
)
def test_a_recipe_that_is_not_there_is_one_line(given: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        _common.read_recipe(given)
    assert str(caught.value).startswith(message)


# ---------------------------------------------------------------- what is shipped


def test_the_real_vocabulary_is_light_and_reads_every_shipped_recipe() -> None:
    code = (
        "import sys\n"
        "from malora_cli.cli._common import read_recipe\nfrom malora_cli.named import vocabulary\n"
        "from malora_cli.recipe import description_of, recipe_schema, shipped_files\n"
        "recipe_schema(vocabulary())\n"
        "for name, path in shipped_files('recipes').items():\n"
        "    assert read_recipe(name).name == path.stem\n"
        "    assert description_of(path), f'{name} has no description'\n"
        "    print(name)\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)))\n"
    )
    result = in_a_process("-c", code)
    assert result.returncode == 0, result.stderr
    *names, heavy = result.stdout.splitlines()
    assert "quickstart" in names
    assert heavy == "[]"


def test_a_copied_recipe_still_finds_its_mix(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    vocabulary = named.vocabulary()
    for name in shipped_files("recipes"):
        assert run("recipes", "cp", name) == 0
        copied = load_recipe(Path(f"{Path(name).name}.yaml"), vocabulary=vocabulary)
        assert copied.recipe == _common.read_recipe(name).recipe
