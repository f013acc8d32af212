"""The metric of a task: its name alone, or a mapping with its options."""

from __future__ import annotations

import pytest

from malora_cli.recipe import MixSettings
from recipe_files import VOCABULARY, load, problems
from recipe_files import in_a_folder as _in_a_folder  # noqa: F401 - a fixture of every test here


def test_a_metric_has_its_own_options() -> None:
    metric = load("mix.tasks.minus.metric={name: exact-match, ignore: [case]}").recipe.mix.tasks["minus"].metric
    assert metric == VOCABULARY.metrics["exact-match"](ignore=("case",))
    assert MixSettings.model_validate(load().recipe.mix.model_dump()).tasks["plus"].metric.name == "exact-match"
    assert "metric: exact-match\n" in load().to_yaml()
    assert "name: exact-match\n" in load("mix.tasks.minus.metric.ignore=[case]").to_yaml()
    assert load("mix.tasks.minus.metric.ignore=[case]").recipe.mix.tasks["minus"].metric == metric
    assert load("mix.tasks.minus.metric=rouge-l").recipe.mix.tasks["minus"].metric == VOCABULARY.metrics["rouge-l"]()


@pytest.mark.parametrize(
    ("metric", "place", "told"),
    [
        ("{name: exact-match, ignor: [case]}", "ignor", 'got ["case"]; no such setting; did you mean \'ignore\'?'),
        ("{name: exact-match, ignore: [cases]}", "ignore.0",
         "got 'cases'; must be one of case, punctuation; did you mean 'case'?"),
        ("{name: exact-match, ignore: case}", "ignore", "got 'case'; must be a list"),
        ("{name: rouge-l, ignore: [case]}", "ignore", 'got ["case"]; no such setting; known: name'),
        ("{name: rouge}", "name", "got 'rouge'; no such metric; did you mean 'rouge-l'?"),
        ("{}", "name", "missing; required (Metric)"),
    ],
)  # fmt: skip
def test_a_wrong_option_of_a_metric_is_told(metric: str, place: str, told: str) -> None:
    override = f"mix.tasks.minus.metric={metric}"
    [line] = problems(override)
    assert line.replace(f"mix.tasks.minus.metric.{place}: ", "") == f"command line: {override}: {told}"
