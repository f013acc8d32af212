"""The commands on real runs: what they print and where, how they end, and what is shipped with them."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import malora_cli
from json_output import assert_documented
from malora_cli.cli import main
from malora_cli.cli._common import names_in
from malora_cli.cli._evaluation import evaluation_table, gate_line, notes
from malora_cli.cli._terminal import plain_table, result_console
from malora_cli.recipe import shipped, shipped_files
from malora_cli.results import EvalResult, RunRecord, Scores, TaskEval
from malora_cli.results.evaluation import Difference
from train_runs import SilentView, load, workplace

ROOT = Path(__file__).parents[1]
NUMBER = r"-?\d+\.\d{3}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a recipe and two runs of it, ``older`` and ``newer``."""
    folder = tmp_path_factory.mktemp("cli")
    recipe = workplace(folder, tiny_model)
    for name in ("older", "newer"):
        with pytest.raises(SystemExit) as caught:
            main(["train", str(recipe), f"output.name={name}", "train.steps=2"])
        assert caught.value.code == 0
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


# ---------------------------------------------------------------- which run


@pytest.mark.parametrize("arguments", [["eval", "--limit", "1", "--tasks", "add"], ["merge-export"], ["report"]])
def test_the_newest_run_is_taken_and_named(
    arguments: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"(newest run: |run: +)runs/newer", first)
    assert not any("older" in line for line in rest)


def test_a_run_is_named_by_its_folder_or_its_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "runs").rename(here / "elsewhere")
    try:
        for name in ("elsewhere/older", str(here / "elsewhere" / "older"), "older"):
            assert run("eval", name, "--runs", "elsewhere", "--limit", "1", "--tasks", "add") == 0
            captured = capsys.readouterr()
            assert "newest" not in captured.out
            [(task, scores)] = RunRecord(here / "elsewhere" / "older").evaluations()[-1].tasks.items()
            assert (task, scores.rows) == ("add", 1)
            assert re.search(r"^results: \S*elsewhere/older/eval$", captured.out, re.MULTILINE)
    finally:
        (here / "elsewhere").rename(here / "runs")


# ---------------------------------------------------------------- what is printed


def test_eval_prints_what_it_writes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("eval", "newer") == 0
    captured = capsys.readouterr()
    result = RunRecord(here / "runs" / "newer").evaluations()[-1]
    models = ("base", "adapter")
    told = [f"{model}: {name}: {task.rows} rows in" for model in models for name, task in result.tasks.items()]
    assert [line.rpartition(" in")[0] + " in" for line in captured.err.splitlines()] == told
    lines = captured.out.splitlines()
    assert lines[0].split() == ["task", "rows", "base", "adapter", "change", "p(Holm)", "unread", "sees"]
    rows = [*result.tasks.items(), *result.domains().items(), ("all domains", result.overall())]
    for line, (name, it) in zip(lines[1 : 1 + len(rows)], rows, strict=True):
        assert line.startswith(name)
        assert it.against is not None
        scores = [f"{scores.score:.2f}" for scores in (it.against, it.model)]
        assert [cell for cell in line.removeprefix(name).split() if cell[:2] in ("0.", "1.")][:2] == scores
    assert max(map(len, lines[: 1 + len(rows)])) <= 80
    assert lines[-2:] == ["results: runs/newer/eval", "report:  runs/newer/report/index.html"]
    assert (here / "runs" / "newer" / "report" / "index.html").is_file()


def test_a_report_as_json_has_its_place_and_the_scores(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("eval", "newer", "--limit", "2") == 0
    capsys.readouterr()
    assert run("report", "newer", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert_documented("malora report", told)
    assert (told["run"], told["report"]) == ("runs/newer", "runs/newer/report/index.html")
    assert {row["task"] for row in told["scores"]} == {"copy", "upper", "add"}
    assert all(0 <= row["score"] <= 1 for row in told["scores"])


def test_the_table_of_an_evaluation_says_what_can_be_told_apart() -> None:
    def task(base: float, adapter: float, p: float, unread: float = 0.0) -> TaskEval:
        scores = [Scores(score=score, low=score - 0.05, high=score + 0.06, unread=unread) for score in (base, adapter)]
        value = adapter - base
        difference = Difference(value=value, low=value - 0.07, high=value + 0.07, p=p, p_holm=p, detectable=0.031)
        return TaskEval(domain="d", metric="m", rows=1500, model=scores[1], against=scores[0], difference=difference)

    tasks = {"up": task(0.125, 0.5, 0.0), "[down]": task(0.75, 0.25, 0.004), "same": task(0.5, 0.53, 0.41, 0.125)}
    result = EvalResult(run="r", created="now", step=1, limit=None, seconds=1, tasks=tasks)
    output = io.StringIO()
    Console(file=output, width=200).print(evaluation_table(result))
    lines = [line.split() for line in output.getvalue().splitlines()]
    assert lines[1] == ["up", "1,500", "0.12", "±0.06", "0.50", "±0.06", "+0.38", "±0.07", "<0.001", "-", "0.03"]
    assert lines[2] == ["[down]", "1,500", "0.75", "±0.06", "0.25", "±0.06", "-0.50", "±0.07", "0.004", "-", "0.03"]
    assert lines[3] == ["same", "1,500", "0.50*", "±0.06", "0.53*", "±0.06", "+0.03", "±0.07", "0.41", "12.5%", "0.03"]
    assert notes(result) == [
        "No significant difference from base: same.",
        "Significantly worse than base: [down].",
        "* 10% or more of the answers could not be read: the score measures their format.",
    ]
    assert gate_line(result) == ("gate: failed, significantly worse than base: [down] by 0.500 (p(Holm) 0.004)", False)
    better = result.model_copy(update={"tasks": {name: tasks[name] for name in ("up", "same")}})
    assert gate_line(better) == ("gate: passed, no task is significantly worse than base", True)


def test_the_table_of_a_model_alone_compares_nothing() -> None:
    alone = TaskEval(domain="d", metric="m", rows=9, model=Scores(score=0.5, low=0.25, high=0.75))
    result = EvalResult(run="m", created="now", step=0, limit=None, seconds=1, against=None, tasks={"t": alone})
    output = io.StringIO()
    Console(file=output, width=80).print(evaluation_table(result))
    assert [line.split() for line in output.getvalue().splitlines()[:2]] == [
        ["task", "rows", "m", "unread"],
        ["t", "9", "0.50", "±0.25", "-"],
    ]


def test_tables_that_are_piped_are_whole(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    domain = "a domain whose name is longer than any terminal is wide " * 4
    overrides = [f"mix.tasks.add.domain={domain}", "mix.tasks.copy.system=", "train.report_to=[]"]
    assert run("train", "tiny.yaml", "--dry-run", "output.name=dry", *overrides) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "…" not in captured.out
    lines = [line.strip() for line in captured.out.splitlines()]
    loaded = load(here / "tiny.yaml", "output.name=dry", *overrides)
    cells = {line.split("  ")[0]: [cell.strip() for cell in re.split(r" {2,}", line)] for line in lines}
    for path, origin in loaded.provenance.items():
        assert cells[path][0] == path
        assert cells[path][-1] == origin
    assert cells["mix.tasks.add.domain"] == ["mix.tasks.add.domain", domain.strip(), "command line"]
    assert cells["mix.tasks.copy.columns.completion"] == ["mix.tasks.copy.columns.completion", "answer", "mix.yaml:1"]
    # Values are spelled as a recipe spells them.
    assert cells["train.epochs"][1:] == ["null", "default"]
    assert cells["train.gradient_checkpointing"][1:] == ["false", "default"]
    assert cells["train.report_to"][1:] == ["[]", "command line"]
    assert not (here / "runs" / "dry").exists()


def test_a_dry_run_counts_parameters_and_rows(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weighted = [
        "mix.weighting=explicit",
        "mix.tasks.copy.weight=1",
        "mix.tasks.upper.weight=1",
        "mix.tasks.add.weight=2",
    ]
    assert run("train", "tiny.yaml", "--dry-run", "output.name=dry", *weighted) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    # 2 layers of 32: down 8, four experts' coefficients 4 x 8, up 4 x 4 and router 4 on each linear.
    sizes = {"q_proj": (32, 32), "k_proj": (32, 16), "v_proj": (32, 16), "gate_proj": (32, 48), "up_proj": (32, 48)}
    total = 0
    for target, (inputs, outputs) in {**sizes, "down_proj": (48, 32)}.items():
        count = 2 * (8 * inputs + 16 * 8 + 16 * outputs + 4 * inputs)
        assert [target, "2", f"{count:,}"] in lines
        total += count
    assert ["all", f"{total:,}"] in lines
    assert total == RunRecord(here / "runs" / "newer").manifest.trainable_parameters
    # 6 steps of 6 rows, half of them from `add`; an end to each answer, and some of its 30 rows set aside.
    rows = RunRecord(here / "runs" / "newer").manifest.train_data["add"].rows
    [add] = [line for line in lines if line[:2] == ["add", "sums"]]
    assert 20 < rows < 30
    assert [*add[:3], *add[6:8]] == ["add", "sums", str(rows), f"{18 / rows:.2f}", "50.0%"]
    assert 2 * rows <= int(add[4]) <= 3 * rows, "answers of one or two digits, and the end"


def test_a_narrow_terminal_loses_nothing() -> None:
    table = plain_table(("task", "where"), ("a number",))
    table.add_row("x" * 30, "y" * 50, "123456.789")
    output = io.StringIO()
    Console(file=output, width=40, force_terminal=True, color_system=None).print(table)
    text = output.getvalue()
    assert "…" not in text
    assert (text.count("x"), text.count("y")) == (30, 50)
    assert max(map(len, text.splitlines())) <= 40


def test_the_width_of_a_terminal_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert result_console().width > 1000
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "77")
    piped = result_console()  # with colours, and yet nothing that is redrawn
    assert (piped.width > 1000, piped.is_terminal, piped.color_system) == (True, False, "standard")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert result_console().width == 77


def test_names_are_split() -> None:
    assert names_in(" a, b,,a ,") == ["a", "b"]
    assert names_in(" ") == []


# ---------------------------------------------------------------- nothing but our own lines


def test_a_process_prints_our_lines_and_no_others(home: Path, tmp_path: Path) -> None:
    """Train and evaluate as a user does: no progress bars, no warnings of the libraries underneath."""
    quiet = {"HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY"}
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hf"), "PYTHONWARNINGS": ""}
    code = (
        "import sys\nfrom malora_cli.cli import main\n"
        "for command in ('train tiny.yaml output.name=noise', 'eval noise', 'merge-export --to lora'):\n"
        "    try:\n        main(command.split())\n"
        "    except SystemExit as end:\n        assert end.code == 0\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    told = r"(base|adapter): (copy|upper|add): 4 rows in \d+ s|.+ \.\.\."
    told += "|warning: (task .* keeps .*|the export names its base model .*)"
    assert [line for line in result.stderr.splitlines() if not re.fullmatch(told, line)] == []
    assert result.returncode == 0
    losses = rf"(  (copy|upper|add) {NUMBER})+"
    lines = [
        rf"step \d/6  validation{losses[:-1]}{{3}}",
        r"step \d/6  since step \d: ((gained|lost) [^:]+|no task gained or lost [^:]+)(  above their best: .+)?"
        r"  imbalance \d\.\d+",
        rf"step \d/6  loss {NUMBER}{losses}  \d+ tokens/s  eta \d+:\d\d",
        r"share of rows, and target:(  ?(copy|upper|add) 33\.3% \(33\.3%\)){3}",
        r"(run|adapter|report): +\S+/runs/noise(/adapter|/report/index\.html)?",
        r"next: +malora eval \S+/runs/noise",
        r"task +rows +base +adapter +change +p\(Holm\) +unread +sees",
        r"(copy|upper|add|words|sums|all domains) +4? +\d\.\d\d( ±0\.\d\d)? +\d\.\d\d( ±0\.\d\d)? +[+-]\d\.\d\d.*",
        r"No significant difference from base: copy, upper, add\.",
        r"results: runs/noise/eval",
        r"report:  runs/noise/report/index\.html",
        r"newest run: runs/noise",
        r"validation loss, nats a token; kept: share of the run's gain over the base model",
        r"gates +task +base +run +export +kept +KL +same top *",
        r"fit +(copy|upper|add)( +\d\.\d{4}){3} +-?\d+% +\d\.\d{4} +\d+\.\d% *",
        r"fit: read back in PEFT, logits of \d+ rows differ by at most \S+",
        r"not checked in vLLM: not installed .*",
        r"exported: runs/noise/export/lora-fit",
    ]
    assert result.stdout.startswith("Mixture: 6 steps of 6 rows")
    # What stands before the first step is the statement: test_check.py.
    printed = result.stdout[result.stdout.index("step 0/6") :].splitlines()
    assert [line for line in printed if not any(re.fullmatch(pattern, line) for pattern in lines)] == []
    assert [p for p in lines if not any(re.fullmatch(p, line) for line in printed)] == []
    assert [line.split()[1] for line in printed if " validation " in line] == ["0/6", "3/6", "6/6"]


# ---------------------------------------------------------------- Ctrl-C


def interrupting_at(step: int) -> SilentView:
    """Presses Ctrl-C after a step."""

    def at_step(done: int) -> None:
        if done == step:
            signal.raise_signal(signal.SIGINT)

    return SilentView(at_step)


def test_an_interrupted_training_says_how_to_go_on_and_does(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("malora_cli.train.view.view_for", lambda _console: interrupting_at(3))
        assert run("train", "tiny.yaml", "output.name=stopped") == 130
    record = RunRecord(here / "runs" / "stopped")
    again = f"malora train {record.recipe_path} --resume"
    captured = capsys.readouterr()
    assert "step 1/6" not in captured.out
    assert captured.err == f"interrupted: saved at step 3; go on from the newest checkpoint with: {again}\n"
    assert not record.finished
    assert run(*again.split()[1:]) == 0
    assert record.finished
    assert [event.step for event in record.metrics.train()] == [1, 2, 3, 4, 5, 6]


def test_an_interrupt_before_the_training_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt  # what Ctrl-C is where nothing listens; a job in the background may ignore the signal

    monkeypatch.setattr("malora_cli.train.run.gather", interrupted)
    assert run("train", "tiny.yaml", "output.name=never") == 130
    assert capsys.readouterr().err == "interrupted before anything was written\n"
    assert not (here / "runs" / "never").exists()


def test_an_interrupted_comparison_goes_on_by_itself(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("compare", "baselines", "tiny.yaml", "output.name=both", "--methods", "malora,lora")
    command += ("--seeds", "0", "--tune", "none")
    with monkeypatch.context() as patch:
        patch.setattr("malora_cli.train.view.view_for", lambda _console: interrupting_at(4))
        assert run(*command) == 130
    captured = capsys.readouterr()
    assert captured.err == "interrupted: the same command goes on from here\n"
    assert run(*command) == 0
    assert "both-malora-seed0: going on" in capsys.readouterr().out


# ---------------------------------------------------------------- bugs


def test_debug_shows_where_an_error_comes_from(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--debug", "train", "tiny.yaml", "model.base=./none", "output.name=never") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert any("in check_base" in line for line in lines)
    assert lines[-1].startswith("error: model ")


# ---------------------------------------------------------------- what is shipped


def test_every_shipped_recipe_and_mix_loads(tmp_path: Path) -> None:
    recipes, mixes = shipped_files("recipes"), shipped_files("data_mixes")
    assert {path.suffix for kind in ("recipes", "data_mixes") for path in shipped(kind).glob("*.y*ml")} == {".yaml"}
    assert "quickstart" in recipes
    assert "quickstart" in mixes
    for name, path in recipes.items():
        assert load(path).name == path.stem, name
    used = {yaml.safe_load(path.read_text(encoding="utf-8"))["mix"] for path in recipes.values()}
    assert used <= mixes.keys()
    for name in mixes:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"model: {{base: x}}\nmethod: {{name: lora}}\nmix: {name}\ntrain: {{steps: 1}}\n")
        mix = load(recipe).recipe.mix
        assert mix.description
        assert len(mix.tasks) > 0  # their rows: test_shipped_mixes.py


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling builds the wheel")
@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="pip builds the wheel")
def test_a_wheel_holds_everything_that_a_checkout_does(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "-w", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        packed = set(archive.namelist())
    package = Path(malora_cli.__file__).parent
    ours = {path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {f"malora_cli/{path.relative_to(package)}" for path in ours} <= packed
    assert {path.suffix for path in ours} >= {".py", ".css", ".j2", ".typed"}
    for kind in ("recipes", "data_mixes", "docs"):
        for path in (ROOT / kind).rglob("*"):
            if path.suffix in {".yaml", ".jsonl", ".md"}:
                assert f"malora_cli/_shipped/{path.relative_to(ROOT)}" in packed
    assert not [name for name in packed if "test" in Path(name).parts[0]]

    code = (
        "from malora_cli.cli._common import read_recipe\n"
        "recipe = read_recipe('quickstart').recipe\n"
        "print(recipe.mix.tasks['chain_sum'].train.path)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = Path(result.stdout.strip())
    assert found.is_file()
    assert found.is_relative_to(tmp_path / "site" / "malora_cli" / "_shipped")
