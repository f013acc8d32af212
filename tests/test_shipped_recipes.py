"""Recipes of the paper, of a small GPU and of a laptop: every method loads, and each trains two steps on stand-ins."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from hub_folders import HUB_MIXES, write_hub
from malora_cli.errors import RecipeError
from malora_cli.recipe import LoadedRecipe, needs_of, shipped_files
from malora_cli.recipe.packaged import shipped
from train_runs import load, train_run

FILES = shipped_files("recipes")
#: Those on the mixes of the hub.
OF_THE_HUB = sorted(name for name in FILES if "/" in name)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixes, beside folders that stand in for the datasets they name."""
    folder = tmp_path_factory.mktemp("hub")
    write_hub(folder)
    for name in HUB_MIXES:
        shutil.copy(shipped("data_mixes") / f"{name}.yaml", folder)
    return folder


def loaded(name: str, *overrides: str) -> LoadedRecipe:
    return load(FILES[name], *overrides)


def test_each_says_what_it_needs_and_whether_that_was_measured() -> None:
    for name, path in FILES.items():
        assert needs_of(path).endswith(("(measured)", "(estimated)", "(estimated, never run)")), name


@pytest.mark.parametrize("name", [name for name in OF_THE_HUB if name.startswith("paper/")])
def test_the_papers_recipes_are_the_papers(name: str) -> None:
    recipe = loaded(name).recipe
    command = next(line for line in FILES[name].read_text().splitlines() if line.startswith("# malora compare"))
    _, _, _, *arguments = shlex.split(command.removeprefix("# "))
    methods = arguments[arguments.index("--methods") + 1].split(",")
    assert arguments[0] == name
    assert {"lora", "asylora", "dora", "molora", "malora"} <= set(methods)
    sizes = {"lora": (64, 128), "asylora": (128, 256), "dora": (64, 128), "molora": (8, 16), "moasylora": (16, 32)}
    for method in methods:
        settings = loaded(name, f"method={method}").recipe.method
        assert settings.name == method
        if method in sizes:
            assert (settings.r, settings.lora_alpha) == sizes[method]
    train = recipe.train
    assert (train.weight_decay, train.warmup_ratio, recipe.method.lora_dropout) == (0.01, 0.1, 0.05)
    inter = name.endswith("inter_domain")
    assert (train.epochs, train.learning_rate, recipe.method.beta) == ((3, 5e-4, 1) if inter else (2, 4e-4, 1.25))


@pytest.mark.parametrize("name", OF_THE_HUB)
def test_each_trains(name: str, hub: Path, tiny_model: Path, tmp_path: Path) -> None:
    mix = hub / f"{yaml.safe_load(FILES[name].read_text())['mix']}.yaml"
    run = train_run(
        FILES[name],
        f"model.base={tiny_model}",
        "model.dtype=float32",
        "model.quantise=null",
        f"mix={mix}",
        "train.epochs=null",
        "train.steps=2",
        "train.max_length=1024",
        "train.micro_batch_tokens=4096",
        "train.eval_rows=1",
        f"output.folder={tmp_path}",
    )
    assert set(run.metrics.evals()[-1].tasks) == set(run.recipe["mix"]["tasks"])


def test_a_method_may_be_its_name_alone() -> None:
    short = loaded("quickstart", "method=mola", "method.lora_alpha=8")
    assert short.recipe.method == loaded("quickstart", "method={name: mola, lora_alpha: 8}").recipe.method
    assert short.provenance["method.name"] == "command line"
    with pytest.raises(RecipeError, match=r"^command line: method=molla: method.name: got 'molla'; .*'mola'\?$"):
        loaded("quickstart", "method=molla")
