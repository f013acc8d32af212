"""What the shell offers on the Tab key, asked as the printed script asks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from malora_cli.cli import main
from run_records import run_record


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def offers(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What bash would be given for a line that ends at the cursor."""
    words = line.split(" ")
    monkeypatch.setenv("_MALORA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    with pytest.raises(SystemExit):
        main([])
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("malora tra", ["train"]),
        ("malora merge-export --gat", ["--gates"]),
        ("malora train qui", ["quickstart"]),
        ("malora train paper/", ["paper/inter_domain", "paper/intra_domain"]),
        ("malora train mi", ["mine.yaml"]),
        ("malora train sub", ["sub/"]),
        ("malora train ./m", ["./mine.yaml"]),
        ("malora train quickstart train.le", ["train.learning_rate="]),
        ("malora train quickstart method.sub", ["method.subspace_rank="]),
        ("malora train quickstart method=as", ["method=asylora"]),
        ("malora train quickstart model.dtype=b", []),
        ("malora compare baselines quickstart --methods lora,mal", ["lora,malora", "lora,malora-decomposed-up",
         "lora,malora-fixed-subspace", "lora,malora-frozen-coefficients", "lora,malora-small", "lora,malora-symmetric",
         "lora,malora-unshared-subspace"]),
        ("malora methods dor", ["dora"]),
        ("malora compare baselines quickstart --methods lora,wide=dor", ["lora,wide=dora"]),
        ("malora compare baselines quickstart --methods wide=lora,dor", ["wide=lora,dora"]),
        ("malora recipes cp examples/t", ["examples/template"]),
        ("malora completion z", ["zsh"]),
    ],
)  # fmt: skip
def test_names_and_settings(
    line: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").touch()
    Path("mine.txt").touch()
    Path("sub").mkdir()
    assert offers(line, monkeypatch, capsys) == expected


def test_runs_and_their_tasks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {"plus": {"domain": "sums"}, "minus": {"domain": "sums"}, "sort": {"domain": "words"}}
    for seconds, name in enumerate(("old", "new")):
        run = run_record(Path("runs"), name)
        run.write_recipe(json.dumps({"mix": {"tasks": tasks}}))
        os.utime(run.manifest_path, (seconds, seconds))
    assert offers("malora report runs/", monkeypatch, capsys)[:2] == ["runs/new", "runs/old"]
    assert offers("malora eval runs/old --tasks plus,m", monkeypatch, capsys) == ["plus,minus"]
    assert offers("malora eval --tasks dom", monkeypatch, capsys) == ["domain:sums", "domain:words"]
    shutil.rmtree("runs")
    assert offers("malora eval --tasks dom", monkeypatch, capsys) == []


def test_the_answer_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom malora_cli.cli import main\n"
        "try:\n    main([])\nfinally:\n"
        "    print(sorted({'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)), file=sys.stderr)\n"
    )
    asked = {"_MALORA_COMPLETE": "complete_bash", "COMP_WORDS": "malora train quickstart tr", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert "train.steps=" in done.stdout.split()
    assert done.stderr.strip() == "[]"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_takes_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    """The words of an answer become bash's, and after a setting's ``=`` comes no blank."""
    with pytest.raises(SystemExit):
        main(["completion", "bash"])
    script = capsys.readouterr().out
    line = (
        "malora() { printf 'train.steps=\\n'; }\n"
        'env() { shift 3; "$@"; }\n'
        "compopt() { echo compopt $*; }\n"
        'COMP_WORDS=(malora train q train.st); COMP_CWORD=3; _malora_completion malora; echo "${COMPREPLY[*]}"\n'
        "complete -p malora\n"
    )
    done = subprocess.run(["bash", "--norc"], input=script + line, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "compopt -o nospace",
        "train.steps=",
        "complete -o default -F _malora_completion malora",
    ]


@pytest.mark.parametrize(("shell", "sign"), [("zsh", "#compdef malora"), ("fish", "complete --command malora")])
def test_other_shells_have_theirs(shell: str, sign: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["completion", shell])
    assert capsys.readouterr().out.startswith(sign)
