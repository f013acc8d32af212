"""The examples of docs/extending.md: each is put where it belongs, is found there, and does what the page says."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import report_runs
from malora_cli.cli import main
from malora_cli.data.formats import FORMATS
from malora_cli.evals.metrics import METRICS
from malora_cli.registry import Registry
from malora_cli.reports.section import SECTIONS

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
EXAMPLES = {
    folder.replace("/", "."): (module, code)
    for folder, module, code in re.findall(
        r"`src/(malora_cli/[\w/]+)/(\w+)\.py`:\n\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
}
MOST_LINES = 40


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every example lies where its package looks for modules."""
    for name, (module, code) in EXAMPLES.items():
        package = importlib.import_module(name)
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{module}.py").write_text(code, encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, f"{name}.{module}", raising=False)
    _look_again()
    yield tmp_path
    for name, (module, _) in EXAMPLES.items():
        sys.modules.pop(f"{name}.{module}", None)
        importlib.import_module(name).__dict__.pop(module, None)
    _look_again()


def _look_again() -> None:
    """Let the registries forget what they have found."""
    from malora_cli.adapters.methods import METHODS

    registries: tuple[Registry[Any], ...] = (METHODS, FORMATS, METRICS, SECTIONS)
    for registry in registries:
        registry.__dict__.pop("_things", None)


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(str(caught.value.code))


def test_there_is_an_example_of_each_and_it_is_short() -> None:
    rooms = ["adapters.methods", "data.formats", "evals.metrics", "reports.sections", "cli"]
    assert list(EXAMPLES) == [f"malora_cli.{room}" for room in rooms]
    assert {name for name, (_, code) in EXAMPLES.items() if len(code.splitlines()) > MOST_LINES} == set()


def test_a_method_is_listed_and_wraps_a_model(
    installed: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("methods", "lokr") == 0
    assert "the update is scaled by alpha / r" in capsys.readouterr().out
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from malora_cli.adapters.methods import METHODS

    config = METHODS["lokr"](r=4).peft_config(["q_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    assert {"lokr_w1", "lokr_w2"} <= {name.split(".")[-2] for name, _ in model.named_parameters()}


def test_a_format_and_a_metric_are_what_a_recipe_may_name(installed: Path) -> None:
    from malora_cli.named import load_named

    (installed / "rows.jsonl").write_text("{}\n")
    task = {"train": "rows.jsonl", "format": "passage", "metric": {"name": "begins", "ignore_case": True}}
    recipe = {"model": {"base": "x"}, "method": {"name": "lokr"}, "mix": {"tasks": {"a": task}}, "train": {"steps": 1}}
    (installed / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    metric = load_named(installed / "recipe.yaml").recipe.mix.tasks["a"].metric
    assert metric.scores(["It is so.", "No"], [["it is"], ["Yes"]]) == [1.0, 0.0]  # type: ignore[attr-defined]
    row = {"passage": "Salt melts ice.", "question": "What does?", "answer": "Salt", "system": None}
    example = FORMATS["passage"].example(row)
    assert example.prompt == "Salt melts ice.\n\nQuestion: What does?"
    assert example.completion == "Salt"


def test_a_section_stands_in_the_report(installed: Path) -> None:
    page = report_runs.page(report_runs.full_run(installed))
    assert page.row("lows", "sums") == ["50", "0.500"]


def test_a_command_is_one_of_malora(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = report_runs.full_run(installed)
    assert status("lows", str(record.path)) == 0
    assert "sums: 0.500 nats a token at step 50\n" in capsys.readouterr().out
