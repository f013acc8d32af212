"""Shipped recipes that are made to be compared: their commands are right, and the small one runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from malora_cli.cli import main
from malora_cli.recipe import description_of, shipped_files
from malora_cli.results.comparison import Comparison, Verdict

#: What the recipes say of themselves, on their first line.
COMMANDS = {
    name: found.group()
    for name, path in shipped_files("recipes").items()
    if (found := re.search(r"malora compare .*", description_of(path)))
}
DOCS = Path(__file__).parents[1] / "docs"


def carry_out(name: str, model: Path, *further: str) -> int:
    """The command of a recipe, on another base model."""
    _, *arguments = shlex.split(COMMANDS[name])
    with pytest.raises(SystemExit) as caught:
        main([*arguments, f"model.base={model}", *further])
    return int(caught.value.code or 0)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_commands_are_in_the_docs() -> None:
    assert set(COMMANDS) == {"compare-smoke", "compare-laptop"}
    text = (DOCS / "comparing.md").read_text(encoding="utf-8")
    for name, command in COMMANDS.items():
        assert shlex.split(command)[3] == name
        assert command in text


@pytest.mark.parametrize(
    ("name", "rates", "methods", "amount"),
    [
        ("compare-smoke", "0.002", ["lora", "malora"], "0 trials and 4 reported runs, 12 training steps"),
        (
            "compare-laptop",
            "0.001 0.003 0.009",
            ["lora", "molora", "hydralora", "malora"],
            "12 trials (more where a best rate lies at an edge) and 12 reported runs, 1,920 training steps",
        ),
    ],
)
def test_what_they_would_run(
    name: str, rates: str, methods: list[str], amount: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert carry_out(name, tiny_model, "--dry-run") == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if rates in line] == methods
    assert amount in out
    assert not Path("runs").exists()


def test_the_small_one_ends_in_a_record_and_a_page(tiny_model: Path) -> None:
    assert carry_out("compare-smoke", tiny_model) == 0
    folder = Path("runs/compare-smoke.compare")
    comparison = Comparison.load(folder)
    assert [(it.method, len(it.runs)) for it in comparison.methods] in (
        [("lora", 2), ("malora", 2)],
        [("malora", 2), ("lora", 2)],
    )
    assert comparison.failures == []
    effect = comparison.of("malora").effect
    assert effect is not None
    assert effect.verdict is not Verdict.NONE
    assert comparison.sentences[0] in (folder / "report" / "index.html").read_text(encoding="utf-8")
