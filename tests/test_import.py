"""``malora import``: rows are trained as the other tool has them, every key is told, and nothing is half done."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imports import CASES, LF, Case, Turns, alpaca, messages, pair
from json_output import assert_documented
from malora_cli.cli import main
from malora_cli.data.columns import RowReader
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats import FORMATS
from malora_cli.errors import MaloraError, RecipeError
from malora_cli.importing import TOOLS, check_tool, convert
from malora_cli.importing._base import Key
from malora_cli.named import load_named
from malora_cli.recipe import TaskSettings

PAGE = Path(__file__).parents[1] / "docs" / "importing.md"


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(str(caught.value.code))


def chatml(turns: Turns) -> str:
    """Turns in the tiny model's template, what is supervised between » and «."""
    parts = []
    for place, (role, text) in enumerate(turns):
        last = place == len(turns) - 1
        answer = f"»{text}<|im_end|>«" if role == "assistant" else f"{text}<|im_end|>"
        parts.append(f"<|im_start|>{role.removeprefix('-')}\n{answer}{'' if last else chr(10)}")
    return "".join(parts)


def rendered(encoder: Encoder, task: TaskSettings, row: dict[str, Any], system: str | None) -> str:
    """A row of a task as the model sees it."""
    reader = RowReader(task.format, FORMATS[task.format], task.columns, list(row), "rows", task.speakers)
    prompt = task.system if task.system is not None else system
    [parts] = encoder.rendered(reader(row), prompt, last=task.supervise == "last").rows
    return "".join(f"»{part.text}«" if part.supervised else part.text for part in parts)


@pytest.mark.parametrize("name", CASES)
def test_rows_are_trained_as_the_tool_has_them(
    name: str,
    tmp_path: Path,
    tiny_model: Path,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case: Case = CASES[name]
    monkeypatch.chdir(tmp_path)
    file = case.write(tmp_path, tiny_model)
    assert status("import", case.tool, str(file.relative_to(tmp_path)), "--out", "here", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert_documented("malora import", found)
    told = {line["key"] for line in found["keys"]}
    assert set(TOOLS[case.tool].load(file)) <= told
    recipe = load_named("here/recipe.yaml").recipe
    assert recipe.mix.tasks.keys() == case.turns.keys()
    for task, (rows, turns) in case.turns.items():
        for row in case.read(tmp_path, rows):
            assert rendered(encoder, recipe.mix.tasks[task], row, recipe.mix.system) == chatml(turns(row))
    for path, value in case.settings.items():
        found: Any = recipe
        for part in path.split("."):
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        assert (path, found) == (path, value)
    assert status("check", "here/recipe.yaml", "--no-step") == 0, capsys.readouterr().err


@pytest.fixture
def sums(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of LLaMA-Factory with its data, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sums.json").write_text(json.dumps([alpaca(number) for number in range(24)]))
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"sums": {"file_name": "sums.json"}}))
    (tmp_path / "sft.yaml").write_text(LF.replace("MODEL", str(tiny_model)) + "dataset: sums\n")
    return tmp_path / "sft.yaml"


def test_unknown_keys_are_told_and_strict_writes_nothing(sums: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("import", "llamafactory", "sft.yaml", "--strict", "--out", "a") == 0
    with sums.open("a") as file:
        file.write("learning_rat: 3\nddp_timeout: 9\n")
    capsys.readouterr()
    assert status("import", "llamafactory", "sft.yaml", "--strict", "--out", "b") == 2
    printed = capsys.readouterr()
    assert printed.err == "error: sft.yaml: left out: learning_rat, ddp_timeout; --strict writes nothing then\n"
    assert re.search(r"^learning_rat +left out +not a key .* did you mean 'learning_rate'\?", printed.out, re.MULTILINE)
    assert re.search(r"^ddp_timeout +left out .*docs/processes.md", printed.out, re.MULTILINE)
    assert not Path("b").exists()
    assert status("import", "llamafactory", "sft.yaml", "--out", "b", "--json") == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert (document["schema"], document["written"][0]) == (1, "b/recipe.yaml")
    assert {"key": "lora_target", "fate": "carried", "detail": "method.target_modules"} in document["keys"]
    assert "next:    malora check b/recipe.yaml" in printed.err
    assert Path("b/.gitignore").read_text() == "saves/a/\n"


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_file_of_another_tool_is_told(tool: str, case: Case, tmp_path: Path) -> None:
    file = case.write(tmp_path, tmp_path / "model")
    if tool == case.tool:
        check_tool(tool, TOOLS, file)
    elif file.suffix != ".sh":  # no other tool reads that at all
        own = TOOLS[case.tool].name
        with pytest.raises(RecipeError, match=rf"this looks like a file of {own}: .* malora import {case.tool} "):
            check_tool(tool, TOOLS, file)


def test_nothing_is_overwritten(sums: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("import", "llamafactory", "sft.yaml", "--out", "deep/er/mine.yaml") == 0
    made = {path.name for path in Path("deep/er").iterdir()}
    assert made == {"mine.yaml", "mine.mix.yaml", ".gitignore"}
    before = Path("deep/er/mine.yaml").read_text()
    Path("mix.yaml").write_text("mine")
    capsys.readouterr()
    both = (
        "deep/er/mine.yaml and deep/er/mine.mix.yaml: they are there already, and are not overwritten. Move them away."
    )
    one = "mix.yaml: it is there already, and is not overwritten. Move it away."
    for out, told in (("deep/er/mine.yaml", both), (".", one)):
        assert status("import", "llamafactory", "sft.yaml", "--out", out) == 2
        assert capsys.readouterr().err == f"error: {told}\n"
    assert Path("deep/er/mine.yaml").read_text() == before
    assert Path("mix.yaml").read_text() == "mine"
    assert not Path("recipe.yaml").exists()


def test_what_would_not_load_leaves_nothing(sums: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sums.open("a") as file:
        file.write("lora_dropout: 1\n")  # a share to the one, and to the other too much
    assert status("import", "llamafactory", "sft.yaml", "--out", "new/folder") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "its recipe would not load" in line
    assert "lora_dropout" in line
    assert not Path("new").exists()


PREFERENCES = {
    "llamafactory: stage": ("llamafactory", "sft.yaml", {"stage": "dpo"}, r"stage: got 'dpo'; only supervised"),
    "llamafactory: kto": ("llamafactory", "sft.yaml", {"stage": "kto"}, r"stage: got 'kto'; only supervised"),
    "axolotl: rl": ("axolotl", "a.yml", {"rl": "dpo"}, r"rl: got 'dpo'; only supervised"),
    "axolotl: reward": ("axolotl", "a.yml", {"reward_model": True}, r"reward_model: got true; only supervised"),
    "axolotl: text": ("axolotl", "a.yml", {"pretraining_dataset": ["a"]}, r"plain text is not trained here"),
    "ms-swift: type": ("ms-swift", "s.yaml", {"rlhf_type": "dpo"}, r"rlhf_type: got 'dpo'; only supervised"),
    "trl: loss": ("trl", "t.yaml", {"loss_type": "sigmoid"}, r"loss_type: got 'sigmoid'; only supervised"),
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool, file, keys, message = PREFERENCES[name]
    monkeypatch.chdir(tmp_path)
    Path(file).write_text(json.dumps(keys))
    assert_refused(capsys, message, tool, file)


def assert_refused(capsys: pytest.CaptureFixture[str], message: str, *arguments: str) -> None:
    """A command ends with one line that says so, and with nothing on disk."""
    assert status("import", *arguments, "--out", "new") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert not Path("new").exists()


def test_preferences_in_the_data_are_refused(sums: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = Path("data/dataset_info.json")
    for entry, message in (
        ({"file_name": "sums.json", "ranking": True}, r"sums.ranking: got true; only supervised"),
        ({"file_name": "sums.json", "columns": {"kto_tag": "good"}}, r"columns.kto_tag: got 'good'; only supervised"),
        ({"file_name": "pairs.json"}, r"pairs.json: pairs of a better and a worse answer"),
        ({"file_name": "none.json"}, r"file or folder not found: 'none.json'"),
        ({}, r"its rows are nowhere"),
        ({"file_name": "sums.json", "columns": {"prompt": "text"}}, r"nothing to supervise"),
    ):
        Path("data/pairs.json").write_text(json.dumps([{"prompt": "a", "chosen": "b", "rejected": "c"}]))
        info.write_text(json.dumps({"sums": entry}))
        assert_refused(capsys, message, "llamafactory", "sft.yaml")


CONTENTS: dict[str, tuple[bytes, str]] = {
    "not YAML": (b"a: [b", r"not valid YAML|not the line"),
    "a list": (b"- a\n- b\n", r"is a mapping"),
    "text": (b"text alone", r"is a mapping"),
    "empty": (b"", r"empty|is named"),
    "nothing": (b"{}", r"says nothing"),
    "bytes": (b"\xff\xfe\x00a", r"not UTF-8"),
    "given twice": (b"a: 1\na: 2\n", r"given twice"),
    "a key that is a number": (b"1: 2\n", r"keys are text"),
    "without a model": (b"seed: 3\n", r"no dataset|names no rows|neither dataset_name"),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("content", CONTENTS)
def test_files_that_are_no_configuration(
    tool: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_bytes(CONTENTS[content][0])
    assert_refused(capsys, CONTENTS[content][1], tool, "c.yaml")


def test_other_files_and_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text("[1]")
    Path("d.json").write_text("{")
    Path("run.sh").write_text("swift sft --model a 'b")
    Path("rlhf.sh").write_text("swift rlhf --model a")
    Path("loose.sh").write_text("swift sft a --model b")
    for message, *arguments in (
        (r"c.json: not a JSON object", "trl", "c.json"),
        (r"d.json: not valid JSON", "ms-swift", "d.json"),
        (r"run.sh: not the line of a shell: No closing quotation", "ms-swift", "run.sh"),
        (r"got swift rlhf; only supervised", "ms-swift", "rlhf.sh"),
        (r"got 'a' before the first --argument", "ms-swift", "loose.sh"),
        (r"gone.yaml: file not found", "axolotl", "gone.yaml"),
        (r"gone.sh: file not found", "ms-swift", "gone.sh"),
        (r"unknown tool 'axolotle'; did you mean 'axolotl'\?", "axolotle", "gone.yaml"),
        (r"this is a folder", "trl", "."),
    ):
        assert_refused(capsys, message, *arguments)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.floats(allow_nan=True),
    st.sampled_from(["", "no", "auto", "lora", "all", "a,b", "rows.jsonl", "../x", "\x00", "{", "1e-4", "cosine"]),
    st.lists(st.sampled_from(["a", "rows.jsonl", 3, None]), max_size=2),
    st.dictionaries(st.sampled_from(["path", "type", "a"]), st.sampled_from(["rows.jsonl", "alpaca", 3]), max_size=3),
    st.lists(
        st.dictionaries(st.sampled_from(["path", "type", "fraction", "split"]), st.sampled_from(["rows.jsonl", 1]))
    ),
)
#: Valid where nothing is changed.
GOOD: dict[str, dict[str, Any]] = {
    "llamafactory": {"model_name_or_path": "m", "dataset": "rows"},
    "axolotl": {"base_model": "m", "datasets": [{"path": "rows.jsonl", "type": "alpaca"}]},
    "ms-swift": {"model": "m", "dataset": "rows.jsonl"},
    "trl": {"model_name_or_path": "m", "dataset_name": "pairs.jsonl"},
}


@pytest.mark.parametrize("tool", TOOLS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_of_any_key_is_told_or_refused_in_a_line(
    tool: str, data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(json.dumps(alpaca(1)) + "\n")
    Path("pairs.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    Path("dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl"}}))
    names = st.sampled_from([*TOOLS[tool].keys, "no_such_key"])
    changed = data.draw(st.dictionaries(names, VALUES, min_size=1, max_size=5))
    keys = GOOD[tool] | changed
    Path("c.json").write_text(json.dumps(keys))
    refused = ""
    try:
        lines = convert(TOOLS[tool], Path("c.json"), Path("out")).lines
    except MaloraError as error:
        refused = str(error)
    assert len(refused.splitlines()) <= 1
    assert refused or (set(keys) <= {line.key for line in lines} and all(line.detail for line in lines))


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    4,
    0.5,
    1e300,
    float("nan"),
    "",
    "no",
    "auto",
    "x",
    "\x00",
    "{",
    "1e400",
    [],
    ["a"],
]
ODD += [[None], [{"path": 1}], {}, {"a": []}, [["a"]], {"a": {"b": 1}}]


@pytest.mark.parametrize("tool", TOOLS)
def test_every_reader_reads_or_names_the_rule(tool: str) -> None:
    for key in (*TOOLS[tool].keys.values(), *TOOLS[tool].row_keys.values()):
        for value in ODD:
            try:
                key.read(value)
            except ValueError as error:
                rule = str(error)
                assert rule.startswith(("must", "only")), (key.name, value)


def told(keys: list[Key]) -> str:
    """The table of keys as the page has it: those of which the same becomes in one row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for line in (key.line for key in keys):
        rows.setdefault((line.fate, line.detail), []).append(f"`{line.key}`")
    order = ("carried", "approximated", "left out")
    listed = sorted(rows.items(), key=lambda item: order.index(item[0][0]))
    lines = [f"| {', '.join(names)} | {fate} | {detail} |" for (fate, detail), names in listed]
    return "\n".join(["| key | | where to, what differs, or why |", "|---|---|---|", *lines])


@pytest.mark.parametrize("tool", TOOLS)
def test_the_page_has_every_key(tool: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for keys in (TOOLS[tool].keys, TOOLS[tool].row_keys):
        assert told([*keys.values()]) in page


def test_every_key_says_what_becomes_of_it() -> None:
    for tool in TOOLS.values():
        for key in (*tool.keys.values(), *tool.row_keys.values()):
            assert key.line.detail, key.name
            assert not (key.differs and key.why), key.name


#: The files that the examples of the page are about: the configurations' own names, and the rows beside them.
EXAMPLES = {"llamafactory": "sft.yaml", "axolotl": "qlora.yml", "ms-swift": "train.sh", "trl": "sft.yaml"}
BESIDE = {"llamafactory": alpaca, "axolotl": alpaca, "ms-swift": alpaca, "trl": pair}


def examples(page: str) -> dict[str, tuple[str, str]]:
    """The configuration of each tool's example on the page, with the name of its file."""
    found = {tool: re.search(rf"<!-- {tool} example -->\n```\w+\n(.*?)```", page, re.DOTALL) for tool in EXAMPLES}
    return {tool: (EXAMPLES[tool], match[1]) for tool, match in found.items() if match}


def printed_for(tool: str, file: str, config: str, folder: Path) -> str:
    """What a tool's example prints, run in a folder that is the current one."""
    (folder / file).write_text(config)
    (folder / "sums.jsonl").write_text("".join(json.dumps(BESIDE[tool](number)) + "\n" for number in range(400)))
    (folder / "chats.jsonl").write_text("".join(json.dumps(messages(number)) + "\n" for number in range(200)))
    (folder / "dataset_info.json").write_text(json.dumps({"sums": {"file_name": "sums.jsonl"}}))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert status("import", tool, file) == 0
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


@pytest.mark.parametrize("tool", TOOLS)
def test_the_examples_of_the_page_print_what_it_says(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    out = printed_for(tool, *examples(page)[tool], tmp_path)
    assert f"$ malora import {tool} {EXAMPLES[tool]}\n{out}```" in page
