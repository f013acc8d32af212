"""Every shipped mix loads: the examples as they are, those of the hub from local folders of the hub's own shape."""

from __future__ import annotations

import shutil
import warnings
from itertools import chain
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hub_folders import HUB_MIXES, write_hub
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats import FORMATS
from malora_cli.data.tasks import Task, load_tasks
from malora_cli.recipe import shipped_files
from malora_cli.recipe.packaged import shipped
from train_runs import load, workplace


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("shipped")
    workplace(folder, tiny_model)
    write_hub(folder)
    for name in HUB_MIXES:
        shutil.copy(shipped("data_mixes") / f"{name}.yaml", folder)
    return folder


def _tasks(place: Path, mix: str) -> dict[str, Task]:
    recipe = load(place / "tiny.yaml", f"mix={mix}", "train.max_length=2048").recipe
    encoder = Encoder(AutoTokenizer.from_pretrained(recipe.model.base))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {task.name: task for task in load_tasks(recipe.mix, encoder, max_length=2048)}


@pytest.mark.parametrize("name", [name for name in shipped_files("data_mixes") if name not in HUB_MIXES])
def test_a_mix_with_its_own_data(name: str, place: Path) -> None:
    for task in _tasks(place, name).values():
        assert task.settings.train.where or task.train.left_out == task.test.left_out == ()
        assert (task.train.label_tokens > 0, task.overlap.exact) == (True, 0)


@pytest.mark.parametrize("name", HUB_MIXES)
def test_a_mix_of_the_hub(name: str, place: Path) -> None:
    tasks = _tasks(place, str(place / f"{name}.yaml"))
    sources = {split.source for task in tasks.values() for split in (task.train, task.test)}
    assert all(Path(source).is_relative_to(place) for source in sources)
    for task in tasks.values():
        assert task.train.left_out == task.test.left_out == ()
        assert task.train.label_tokens > 0
        assert all(map(task.settings.metric.reads, chain(*task.test.rows["references"])))


def test_what_the_rows_of_the_hub_become(place: Path) -> None:
    tasks = _tasks(place, str(place / "inter_domain.yaml"))
    inter = {
        name: (task.train.encoded[1]["prompt"], task.train.encoded[1]["references"][0]) for name, task in tasks.items()
    }
    letter = "\n\nAnswer with the letter alone."
    assert inter["medmcqa"] == ("question 1\n\nA. opa 1\nB. opb 1\nC. opc 1\nD. opd 1" + letter, "B")
    assert inter["metamath"] == ("query 1", "response 1")
    assert inter["alpaca_gpt4"] == ("instruction 1\n\ninput 1", "output 1")
    assert inter["e2e_nlg"] == ("Say this in a sentence or two: meaning_representation 1", "human_reference 1")
    assert tasks["metamath"].test.rows[0]["references"][0] == "answer 5000"
    assert tasks["alpaca_gpt4"].test.rows[1]["references"][0] == "B"
    langs = [int(prompt.split()[-1]) % 2 for prompt in tasks["magicoder"].test.rows["prompt"]]
    assert (len(langs), sum(langs)) == (500, 250)  # as many of each language
    intra = _tasks(place, str(place / "intra_domain.yaml"))
    assert intra["piqa"].train.encoded[1]["prompt"] == "goal 1\n\nA. sol1 1\nB. sol2 1" + letter
    assert [intra["boolq"].train.encoded[n]["references"][0] for n in (0, 1)] == ["yes", "no"]
    assert intra["arc_easy"].train.encoded[2]["references"][0] == "C"


def test_the_papers_sizes_are_in_the_mix(place: Path) -> None:
    mix = load(place / "tiny.yaml", "mix=inter_domain").recipe.mix
    assert {task.max_rows for task in mix.tasks.values()} == {30_000}
    assert mix.weighting == "uniform"
    assert len({task.domain for task in mix.tasks.values()}) == 6


def test_there_is_an_example_for_every_format() -> None:
    examples = {name.removeprefix("examples/") for name in shipped_files("data_mixes") if name.startswith("examples/")}
    assert examples == {"public_shapes", *(name.replace("-", "_") for name in FORMATS)}


def test_files_in_public_shapes_are_read_as_they_are(place: Path) -> None:
    tasks = _tasks(place, "examples/public_shapes")
    rows = {name: [*task.train.rows, *task.test.rows] for name, task in tasks.items()}
    answers = {name: sorted(row["references"][0] for row in found) for name, found in rows.items()}
    assert answers == {
        "tables": ["1", "15", "2023, 2024", "2023, 2024", "2023, 2024", "26", "3", "32", "6"],
        "intents": ["alarm", "alarm", "music", "music", "music", "weather", "weather", "weather"],
        "abstracts": ["no", "yes", "yes"],
        "ordering": ["Cy"] * 4,
        "passages": ["1871", "40 metres", "cars", "five"],
        "seeds": ["cold", "green", "late", "white"],
        "assistant": ["10", "4", "6", "8"],
        "preferences": ["Hello!", "I am sorry.", "Thank you!"],
        "science": ["A", "B", "B", "C"],
        "capitals": ["Lima", "Nairobi", "Oslo", "Paris", "Tokyo"],
        "exam": ["A", "B", "B", "C"],
    }
    assert ["1871", "in 1871"] in [row["references"] for row in rows["passages"]]
    assert "What is the capital of Kenya?" in [row["prompt"] for row in rows["capitals"]]
    table = "Sales of the bakery, in thousands.\n | 2023 | 2024\nBread | 20 | 26\n"
    assert f"{table}By how much did the sales of bread grow?" in [row["prompt"] for row in rows["tables"]]


def test_every_hub_dataset_has_its_licence_beside_it() -> None:
    known = ("Apache-2.0", "MIT", "CC-BY", "AFL")
    for name in HUB_MIXES:
        text = (shipped("data_mixes") / f"{name}.yaml").read_text(encoding="utf-8")
        heads = [line for line in text.splitlines() if line.startswith("  ") and line.lstrip() == line[2:]]
        assert len(heads) == len(load_names(text))
        assert all(any(licence in line for licence in known) for line in heads)


def load_names(text: str) -> list[str]:
    import yaml

    return list(yaml.safe_load(text)["tasks"])
