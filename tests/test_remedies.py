"""Remedies as plug-ins: found by discovery, chosen by the recipe, and without a trace where they are not."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from malora_cli.errors import RecipeError
from malora_cli.named import vocabulary
from malora_cli.recipe import recipe_schema
from malora_cli.reports import write_report
from malora_cli.results import RunRecord
from malora_cli.train import remedies
from malora_cli.train.remedies import REMEDIES
from train_runs import load, losses, same_weights, train_run, workplace

#: What the tiny recipe printed before remedies were plug-ins: the nats of every task at every log step.
BEFORE = json.loads(Path(__file__).with_name("remedies_before.json").read_text(encoding="utf-8"))
TOGETHER = ["remedies.bandit.every=2", "remedies.uncertainty={}", "remedies.pcgrad={}", "mix.tasks.add.loss_weight=2"]
#: What changes when a field is set to another value than its default, for every field of every remedy.
FIELDS = {
    "bandit.every": ("1", lambda record: [event.task_share for event in record.metrics.train()]),
    "patience.evaluations": ("1", lambda record: record.manifest.remedies),
    "uncertainty.learning_rate": ("0.1", lambda record: record.metrics.train()[-1].loss_weight),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("remedies"), tiny_model)


@pytest.mark.parametrize("which", BEFORE)
def test_losses_are_those_of_before(which: str, recipe: Path) -> None:
    settings = TOGETHER if which == "together" else []
    whole = "mix.validation=null"  # of all rows, as when these were recorded
    record = train_run(recipe, f"output.name={which}", "method.lora_dropout=0", whole, *settings)
    found = [{name: task.nats for name, task in event.tasks.items()} for event in record.metrics.train()]
    # Float32 over six steps: units of rounding, times the length of the sums, times a gain of a few a step.
    assert found == [pytest.approx(event, rel=1e-4) for event in BEFORE[which]]


def test_every_field_of_a_remedy_is_read(recipe: Path) -> None:
    fields = {f"{name}.{field}" for name, remedy in REMEDIES.items() for field in remedy.Settings.model_fields}
    assert fields == FIELDS.keys()
    for path, (value, look) in FIELDS.items():
        name = path.partition(".")[0]
        usual = train_run(recipe, f"remedies.{name}={{}}", f"output.name={name}-usual")
        changed = train_run(recipe, f"remedies.{path}={value}", f"output.name={name}-changed")
        assert look(changed) != look(usual), path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("remedies.pcgrat={}", "unknown setting; did you mean 'pcgrad'?"),
        ("remedies.patience.rounds=2", "unknown setting; known: evaluations"),
        ("remedies.patience.evaluations=0", "got 0; must be greater than 0"),
        ("remedies.pcgrad=", "got null; must be a mapping: {} takes its defaults, false leaves it out"),
        ("remedies.pcgrad=true", "got true; must be a mapping"),
    ],
)
def test_a_wrong_choice_is_one_line(override: str, message: str, recipe: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(recipe, override)
    assert str(caught.value).endswith(message)


def test_what_is_left_out_leaves_no_trace(recipe: Path) -> None:
    assert load(recipe, "remedies.pcgrad={}", "remedies.pcgrad=false").recipe == load(recipe).recipe
    assert "pcgrad" not in load(recipe).to_yaml()
    assert "pcgrad: {}" in load(recipe, "remedies.pcgrad={}").to_yaml()
    offered = recipe_schema(vocabulary())["$defs"]["RemediesSettings"]["properties"]
    assert offered["pcgrad"]["anyOf"] == [{"$ref": "#/$defs/PcgradSettings"}, {"const": False}]


@pytest.fixture
def focal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example of the documentation, put where remedies are found."""
    page = (Path(__file__).parents[1] / "docs" / "remedies.md").read_text(encoding="utf-8")
    (tmp_path / "focal.py").write_text(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], encoding="utf-8")
    monkeypatch.setattr(remedies, "__path__", [*remedies.__path__, str(tmp_path)])
    vars(REMEDIES).pop("_things", None)  # what was found before
    yield
    vars(REMEDIES).pop("_things", None)
    sys.modules.pop(f"{remedies.__name__}.focal", None)


def test_the_example_of_the_documentation_is_a_remedy(recipe: Path, focal: None) -> None:
    def trained(name: str, *settings: str) -> RunRecord:
        return train_run(recipe, f"output.name={name}", "method.lora_dropout=0", *settings)

    plain, even = trained("without"), trained("even", "remedies.focal.gamma=0")
    assert [pytest.approx(step) for step in losses(plain)] == losses(even)
    record = trained("focal", "remedies.focal={}")
    assert losses(record)[0] == pytest.approx(losses(plain)[0]), "what is logged is the loss itself"
    assert not same_weights(record, plain)
    assert "(focal loss, gamma 2)" in write_report(record).read_text(encoding="utf-8")


def test_two_remedies_cannot_both_combine_gradients(recipe: Path, focal: None) -> None:
    REMEDIES["focal"].splits_gradients = True
    with pytest.raises(RecipeError, match=r"remedies: focal and pcgrad would each combine the tasks' gradients"):
        train_run(recipe, "output.name=never", "remedies.focal={}", "remedies.pcgrad={}")
