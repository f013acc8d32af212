"""The documentation is true: blocks load and compile, commands parse, links lead somewhere, reference is the code's."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from rich.console import Console

from json_output import DOCUMENTS
from malora_cli.cli import _application, main
from malora_cli.errors import RecipeError
from malora_cli.named import load_named, vocabulary
from malora_cli.recipe import InvalidRecipeError, Recipe, load_recipe, recipe_schema
from malora_cli.recipe.mix_settings import MixSettings, TaskSettings
from malora_cli.reports.section import SECTIONS
from malora_cli.results import EvalEvent, TaskLoss, TrainEvent
from pages import BLOCKS, DOCS, PAGES, ROOT, SPANS, blocks, prose, words

#: Options of other programs that stand in the text by themselves.
FOREIGN = {"--enforce-eager", "--recipe", "--torch-backend"}
#: Pages whose examples are of a method, a metric or a remedy that a reader adds.
ELSEWHERE = ("docs/extending.md", "docs/remedies.md")


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(str(caught.value.code))


# ---------------------------------------------------------------- blocks


def test_every_python_block_compiles() -> None:
    found = blocks("python")
    assert len(found) >= 10
    for block in found:
        compile(block.text, block.page, "exec")


def test_python_blocks_import_what_there_is() -> None:
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("malora_cli"):
                module = importlib.import_module(node.module or "")
                names = {alias.name for alias in node.names}
                assert names <= {*dir(module), *getattr(module, "__all__", ())}, block.page


def test_every_yaml_block_is_part_of_a_recipe(tmp_path: Path) -> None:
    ours = [block for block in blocks("yaml") if block.page != "docs/importing.md"]  # other tools' files
    found = [(piece, block.page) for block in ours for piece in _pieces(block.text)]
    assert len(found) >= 20
    wrong = {f"{page}: {piece}": problems for piece, page in found if (problems := _problems(piece, tmp_path))}
    assert wrong == {}


def test_a_wrong_block_would_be_found(tmp_path: Path) -> None:
    for piece in ("metric: {name: rouge-l, ignore: [case]}", "train: {stps: 3}", "holdout: {row: 5}", "wheighting: x"):
        assert _problems(piece, tmp_path)


def test_every_setting_in_the_text_takes_the_value_beside_it(tmp_path: Path) -> None:
    sections = {*Recipe.model_fields, *MixSettings.model_fields, *TaskSettings.model_fields}
    setting = re.compile(r"([\w.]+): (.+?)(?: \|[\w| ]+)?")  # with the first of several values
    named = [(*match.groups(), page) for span, page in SPANS if (match := setting.fullmatch(span))]
    given = [(key.split("."), value, page) for key, value, page in named if "N" not in value and page not in ELSEWHERE]
    pieces = [(_nested(path, value), page) for path, value, page in given if path[0] in sections]
    assert len(pieces) >= 50
    assert [(page, piece, problems) for piece, page in pieces if (problems := _problems(piece, tmp_path))] == []


def test_every_setting_behind_a_command_is_one() -> None:
    lines = [(line, block.page) for block in blocks("", "console", "bash") for line in block.text.splitlines()]
    given = {
        (page, *overrides)
        for line, page in [*lines, *SPANS]
        if page not in ELSEWHERE
        and (overrides := [word for word in words(line)[1:] if re.match(r"(method|train|eval|remedies)[\w.]*=", word)])
    }
    assert len(given) >= 8
    for page, *overrides in given:
        try:
            load_named("quickstart", overrides)
        except RecipeError as error:
            pytest.fail(f"{page}: {error}")


def _nested(path: list[str], value: str) -> str:
    return "".join(f"{'  ' * depth}{key}:\n" for depth, key in enumerate(path)).rstrip() + f" {value.strip()}"


def _pieces(block: str) -> Iterator[str]:
    """The block where it is a recipe or a mix, else its entries one by one: alternatives stand below one another."""
    keys = re.findall(r"^(\w+):", block, re.MULTILINE)
    if {"model", "method"} <= {*keys} or "tasks" in keys:
        yield block
    else:
        yield from filter(None, (piece.strip() for piece in re.split(r"^(?=\w)", block, flags=re.MULTILINE)))


def _problems(piece: str, folder: Path) -> list[str]:
    """What is wrong with a part of a recipe, wherever in one it may stand; what it leaves out is not."""
    key = piece.partition(":")[0]
    inner = "".join(f"  {line}\n" for line in piece.splitlines())
    task = "".join(f"    {line}\n" for line in inner.splitlines())
    ways = [piece] if key in Recipe.model_fields else []
    ways += [f"mix:\n{inner}"] if key in MixSettings.model_fields or "\ntasks:" in piece else []
    ways += [f"mix:\n  tasks:\n    a:\n{task}"]
    found = [_wrong(way, folder) for way in ways]
    return min(found, key=len)


def _wrong(text: str, folder: Path) -> list[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(text, encoding="utf-8")
    try:
        load_recipe(recipe, vocabulary=vocabulary(), model_only=True)
    except InvalidRecipeError as error:
        return [problem for problem in error.problems if ": missing; " not in problem]
    return []


# ---------------------------------------------------------------- commands and settings


def test_every_command_line_parses() -> None:
    lines = [(line, block.page) for block in blocks("", "console", "bash") for line in block.text.splitlines()]
    found = [(typed, page) for line, page in [*lines, *SPANS] if (typed := words(line))]
    assert len(found) >= 150
    wrong = [(page, typed, problem) for typed, page in found if (problem := _misread(typed))]
    assert wrong == []


def test_a_wrong_command_line_would_be_found() -> None:
    for line in ("evall", "eval --limt 3", "eval --step", "compare base", "merge-export --to gguf"):
        assert _misread(words(f"malora {line}")), line


def test_every_option_that_the_text_names_is_one() -> None:
    known = {option for it in _commands(_root()) for one in it.params for option in (*one.opts, *one.secondary_opts)}
    named = {(word, page) for span, page in SPANS if span.startswith("--") for word in re.findall(r"--[a-z-]+", span)}
    assert {(word, page) for word, page in named if word not in known | FOREIGN} == set()


def test_every_setting_that_the_text_names_is_one() -> None:
    schema = recipe_schema(vocabulary())
    setting = re.compile(r"(model|train|eval|output|remedies)\.(?!gguf|safetensors|yaml)([a-z_]+)(?![(\w])")
    found = [(*match.groups(), page) for span, page in SPANS if (match := setting.match(span))]
    assert len(found) >= 50
    named = {section: schema["properties"][section]["$ref"].rpartition("/")[2] for section, _, _ in found}
    known = {section: schema["$defs"][name]["properties"] for section, name in named.items()}
    assert {(page, f"{section}.{key}") for section, key, page in found if key not in known[section]} == set()


def _misread(typed: list[str]) -> str:
    """What a command line gets wrong: a command, an option, or one of a few values."""
    command = _root()
    context = command.make_context("malora", [], resilient_parsing=True)
    while True:
        context.resilient_parsing = False  # which is for what is missing, and lets what is wrong pass too
        try:
            values, rest, _ = command.make_parser(context).parse_args(list(typed))
        except Exception as error:
            return str(error)
        if not (inner := getattr(command, "commands", None)) or not rest:
            return _mischosen(command, context, values)
        if rest[0] not in inner:
            return f"no command {rest[0]}"
        command, typed = inner[rest[0]], rest[1:]
        context = command.make_context(rest[0], [], parent=context, resilient_parsing=True)


def _mischosen(command: Any, context: Any, values: dict[str, Any]) -> str:
    """An option's value that is none of those it takes."""
    for option in command.params:
        shown, _ = option.get_help_record(context) or ("", "")
        choices = re.search(r"<(\w+(?:\|\w+)+)>", shown)
        if choices and option.name in values and values[option.name] not in choices[1].split("|"):
            return f"{shown} is none of {values[option.name]}"
    return ""


@cache
def _root() -> Any:
    return typer.main.get_command(_application())


def _commands(command: Any) -> Iterator[Any]:
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from _commands(inner)


# ---------------------------------------------------------------- links and pages


def test_every_link_leads_somewhere() -> None:
    wrong = []
    for page, text in PAGES.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            if not link.startswith(("http:", "https:")) and not (target.exists() and _has(target, anchor)):
                wrong.append((page, link))
    assert wrong == []


def _has(target: Path, anchor: str) -> bool:
    return not anchor or anchor in {_anchor(heading) for heading in _headings(target.read_text(encoding="utf-8"))}


def _headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)


def _anchor(heading: str) -> str:
    """The name of a heading's place, as GitHub gives it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_page_stands_in_the_index() -> None:
    listed = re.findall(r"^[\w/-]+$", PAGES["docs/index.md"], re.MULTILINE)
    assert sorted(f"docs/{name}.md" for name in listed) == sorted(PAGES.keys() - {"README.md", "docs/index.md"})


def test_the_report_page_names_every_section() -> None:
    titles = [section.title for section in sorted(SECTIONS.values(), key=lambda section: section.order)]
    assert [heading for heading in _headings(PAGES["docs/reading-a-report.md"]) if heading in titles] == titles


def test_the_diagram_shows_the_rooms_in_the_order_that_is_checked() -> None:
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    rooms = [re.split(r"[:| ]+", layer) for layer in layers["contracts"][0]["layers"]]
    page = PAGES["docs/how-it-is-built.md"]
    [diagram] = [block.text for block in BLOCKS if block.page == "docs/how-it-is-built.md"]
    shown = [re.findall(r"\w+", line) for line in re.findall(r"│ (.*?) │", diagram)]
    assert [words for words in shown if words] == rooms
    assert {room for row in rooms for room in row if f"`{room}" not in page} == set()


def test_every_document_in_json_is_described() -> None:
    """`eval` and `compare` print records that have tables of their own, dry runs aside; `bench` writes to a file."""
    root = typer.main.get_command(_application())
    found = set(_with_json(root, root.make_context("malora", [], resilient_parsing=True)))
    kept = {name for name in found if name.split()[1] in ("eval", "compare", "bench")}
    assert found - kept == {name.removesuffix(" --check") for name in DOCUMENTS if not name.endswith(" --dry-run")}
    assert {name.split()[1] for name in kept} == {"eval", "compare", "bench"}


def _with_json(command: Any, context: Any) -> Iterator[str]:
    if any("--json" in parameter.opts for parameter in command.params):
        yield context.command_path
    for name, inner in getattr(command, "commands", {}).items():
        yield from _with_json(inner, inner.make_context(name, [], parent=context, resilient_parsing=True))


def test_the_reference_is_what_the_code_says() -> None:
    made = _module("generate").pages()
    assert {path.name for path in (DOCS / "reference").iterdir()} == made.keys()
    for name, page in made.items():
        assert PAGES[f"docs/reference/{name}"] == page, "run `python docs/generate.py`"


def _module(name: str) -> ModuleType:
    """A script of the documentation."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- malora docs


def test_the_picture_of_the_live_view_is_drawn_from_a_log() -> None:
    images = _module("images")
    log = [
        EvalEvent(step=0, seconds=0, tasks={"sums": TaskLoss(nats=9, tokens=3, examples=3)}),
        *(
            TrainEvent(
                step=step,
                seconds=30 * step,
                tasks={"sums": TaskLoss(nats=6 / step, tokens=3, examples=6)},
                learning_rate=1e-3,
                tokens_per_second=10,
                seconds_per_step=30,
            )
            for step in (5, 10)
        ),
    ]
    console = Console(file=StringIO(), width=100)
    console.print(images.drawn(log, 20, {"sums": 1.0})._picture())
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "10/20 0:05:00" in drawn
    assert re.search(r"^sums +0\.200 +-0\.200 +3\.000 .*█", drawn, re.MULTILINE)
    picture = images.PICTURE.read_text(encoding="utf-8")
    assert "rotate_right" in picture
    assert "@font-face" not in picture


def test_topics_are_listed_with_their_titles(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("docs") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == sorted(
        page.removeprefix("docs/").removesuffix(".md") for page in PAGES.keys() - {"README.md", "docs/index.md"}
    )
    assert ["data", "Data: sources, formats, mixtures"] in [line.strip().split(maxsplit=1) for line in lines]


def test_a_page_in_a_pipe_is_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("docs", "remedies") == 0
    assert capsys.readouterr().out == PAGES["docs/remedies.md"]


def test_a_page_on_a_terminal_is_set(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    assert status("docs", "remedies") == 0
    out = capsys.readouterr().out
    assert "Adding a remedy" in out
    assert "# Adding" not in out
    assert "```" not in out


def test_sections_are_found_by_their_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("docs", "--search", "slurm Preempted") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["processes"]
    assert status("docs", "--search", "out of memory") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[-1].split() == ["speed", "Training", "against", "TRL"]  # where the words stand apart
    assert status("docs", "data", "--search", "squad") == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]} == {"data"}


def test_a_topic_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("docs", "dat") == 2
    assert capsys.readouterr().err == "error: TOPIC: unknown topic 'dat'; did you mean 'data'?\n"
