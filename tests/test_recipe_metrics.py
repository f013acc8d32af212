"""The metric of a task: its name alone, or a mapping with its options."""

from __future__ import annotations

from pathlib import Path

import pytest

from malora_cli.evals.metrics.evaluate import Evaluate
from malora_cli.recipe import MixSettings
from recipe_files import VOCABULARY, change, load, problems
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
        ("{name: exact-match, ignor: [case]}", "ignor", 'unknown setting; did you mean \'ignore\'?'),
        ("{name: exact-match, ignore: [cases]}", "ignore.0",
         "got 'cases'; must be one of case, punctuation; did you mean 'case'?"),
        ("{name: exact-match, ignore: case}", "ignore", "got 'case'; must be a list"),
        ("{name: rouge-l, ignore: [case]}", "ignore", 'unknown setting; known: name'),
        ("{name: rouge}", "name", "got 'rouge'; unknown metric; did you mean 'rouge-l'?"),
        ("{}", "name", "missing; required (Metric)"),
    ],
)  # fmt: skip
def test_a_wrong_option_of_a_metric_is_told(metric: str, place: str, told: str) -> None:
    override = f"mix.tasks.minus.metric={metric}"
    [line] = problems(override)
    assert line.replace(f"mix.tasks.minus.metric.{place}: ", "") == f"command line: {override}: {told}"


# ---------------------------------------------------------------- a module of the user's own

TRUSTED = "eval.trust_metric_code=true"
MINE = "mix.tasks.minus.metric=evaluate:mine.py"


@pytest.mark.parametrize("written", ["evaluate:../mine.py", "{name: evaluate, path: ../mine.py}"])
def test_a_module_lies_where_the_file_says_that_names_it(written: str, tmp_path: Path) -> None:
    change("metric: exact-match\n    max_new", f"metric: {written}\n    max_new", "mixes/sums.yaml")
    loaded = load(TRUSTED)
    metric = loaded.recipe.mix.tasks["minus"].metric
    assert metric == Evaluate(path=str(tmp_path / "mine.py"))
    assert loaded.recipe.mix.code == [str(tmp_path / "mine.py")]
    assert loaded.provenance["mix.tasks.minus.metric.path"] == "mixes/sums.yaml:16"
    Path("again.yaml").write_text(loaded.to_yaml())
    assert load(path="again.yaml").recipe.mix == loaded.recipe.mix


def test_a_module_is_trusted_by_the_recipe_or_refused(tmp_path: Path) -> None:
    told = f"a metric is Python code of {tmp_path}/mine.py; if you trust it, set eval.trust_metric_code to true"
    assert problems(MINE) == [f"sums.yaml:2: eval: missing; {told}"]
    assert problems(MINE, "eval.rows=4") == [f"command line: eval.rows=4: eval: {told}"]
    assert load(MINE, TRUSTED).recipe.eval.trust_metric_code
    assert not load().recipe.eval.trust_metric_code


def test_the_recipe_of_a_run_does_not_trust_for_whoever_opens_it(tmp_path: Path) -> None:
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text(load(MINE, TRUSTED).to_yaml())
    assert load(path="run/recipe.yaml").recipe.mix.code
    Path("run/manifest.json").touch()
    [line] = problems(path="run/recipe.yaml")
    assert line.startswith("run/recipe.yaml:")
    assert "eval.trust_metric_code: got true; the recipe of a run does not let Python code of '/" in line
    assert line.endswith(f"be run; if you trust it, add {TRUSTED}")
    assert load(TRUSTED, path="run/recipe.yaml").recipe.mix.code
