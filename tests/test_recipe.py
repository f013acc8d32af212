"""The recipe room: what is read, what is refused and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from malora_cli.recipe import (
    InvalidRecipeError,
    Recipe,
    recipe_type,
)
from recipe_files import MIX, RECIPE, VOCABULARY, Shared, Wide, change, flat, load, problems
from recipe_files import in_a_folder as _in_a_folder  # noqa: F401 - a fixture of every test here

# ---------------------------------------------------------------- reading


def test_a_recipe_is_read_with_the_papers_defaults() -> None:
    recipe = load().recipe
    assert recipe.model.base == "tiny"
    assert isinstance(recipe.method, Shared)
    assert recipe.method.r == 4
    assert recipe.train.steps == 100
    assert recipe.train.epochs is None
    assert recipe.train.learning_rate == 0.002
    assert (recipe.train.warmup_ratio, recipe.train.weight_decay) == (0.1, 0.01)
    assert recipe.train.micro_batch_size == 24  # the whole batch unless told otherwise
    assert recipe.eval.rows is None
    assert load("train.learning_rate=0.1").recipe.train.learning_rate == 0.1


def test_the_papers_learning_rate_is_the_default() -> None:
    change("  learning_rate: 2e-3\n", "")
    assert load().recipe.train.learning_rate == 5e-4


def test_data_paths_are_relative_to_the_mix_and_hub_ids_stay(tmp_path: Path) -> None:
    tasks = load().recipe.mix.tasks
    assert tasks["plus"].train.path == str(tmp_path / "mixes" / "plus.jsonl")
    assert tasks["plus"].test.path == "owner/plus"
    assert tasks["plus"].test.split == "test"
    assert tasks["minus"].train.path == "data/minus"  # not there, so perhaps a hub id
    assert tasks["minus"].test.path == str(tmp_path / "elsewhere.jsonl")  # '..' begins a path and nothing else


def test_a_folder_of_rows_is_a_data_path(tmp_path: Path) -> None:
    (tmp_path / "mixes" / "data" / "minus").mkdir(parents=True)
    assert load().recipe.mix.tasks["minus"].train.path == str(tmp_path / "mixes" / "data" / "minus")


def test_links_keep_the_names_that_say_what_they_are(tmp_path: Path) -> None:
    """A store such as the hub's cache or DVC's names files after their hash."""
    store, shown = tmp_path / "store", tmp_path / "shown"
    for folder in (store, shown):
        folder.mkdir()
    change("base: tiny", "base: model.gguf")
    for number, name in enumerate(("sums.yaml", "mixes/sums.yaml", "mixes/plus.jsonl", "model.gguf")):
        (tmp_path / name).touch()
        (tmp_path / name).rename(store / f"{number}")
        (shown / name).parent.mkdir(exist_ok=True)
        (shown / name).symlink_to(store / f"{number}")
    recipe = load(path="shown/sums.yaml").recipe
    assert recipe.model.base == str(shown / "model.gguf")
    assert recipe.mix.tasks["plus"].train.path == str(shown / "mixes" / "plus.jsonl")


def test_a_link_to_a_recipe_elsewhere_means_what_that_recipe_means(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "linked.yaml").symlink_to(tmp_path / "sums.yaml")
    assert load(path="far/linked.yaml").recipe.mix == load().recipe.mix


def test_data_paths_from_the_command_line_are_relative_to_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").touch()
    recipe = load("mix.tasks.plus.train=mine.jsonl", "mix.tasks.minus.test.path=mine.jsonl").recipe
    assert recipe.mix.tasks["plus"].train.path == str(tmp_path / "mine.jsonl")
    assert recipe.mix.tasks["minus"].test.path == str(tmp_path / "mine.jsonl")


def test_a_base_model_beside_the_recipe_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert load(path="../sums.yaml").recipe.model.base == str(tmp_path / "tiny")
    assert load("model.base=tiny", path="../sums.yaml").recipe.model.base == "tiny"  # not in the current folder


def test_a_mix_may_stand_in_the_recipe(tmp_path: Path) -> None:
    inline = "mix:\n" + "".join(f"  {line}\n" for line in MIX.splitlines())
    change("mix: mixes/sums.yaml\n", inline)
    (tmp_path / "plus.jsonl").touch()
    loaded = load()
    assert loaded.recipe.mix.tasks["plus"].train.path == str(tmp_path / "plus.jsonl")
    assert loaded.provenance["mix.tasks.plus.domain"] == "sums.yaml:11"


def test_a_mix_may_be_shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("malora_cli.recipe.packaged.shipped", lambda _kind: tmp_path / "mixes")
    change("mixes/sums.yaml", "sums")
    assert set(load().recipe.mix.tasks) == {"plus", "minus"}
    assert problems("mix=sum") == [
        "command line: mix=sum: got 'sum'; not found among the shipped mixes, and a mix file ends in .yaml; "
        "did you mean 'sums'?"
    ]


def test_merge_keys_carry_one_tasks_settings_to_the_next() -> None:
    change("  plus:\n", "  plus: &plus\n", "mixes/sums.yaml")
    with Path("mixes/sums.yaml").open("a") as file:
        file.write("  times:\n    <<: *plus\n    domain: products\n")
    loaded = load()
    plus, times = loaded.recipe.mix.tasks["plus"], loaded.recipe.mix.tasks["times"]
    assert times == plus.model_copy(update={"domain": "products"})
    assert loaded.provenance["mix.tasks.times.metric"] == "mixes/sums.yaml:10"
    assert loaded.provenance["mix.tasks.times.domain"] == "mixes/sums.yaml:20"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2e-3", 0.002),
        ("2.0e-3", 0.002),
        ("2E-03", 0.002),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e3", 1000.0),
        ("1", 1.0),
        ("+0.5", 0.5),
    ],
)
def test_numbers_are_read_as_people_write_them(written: str, read: float) -> None:
    change("2e-3", written)
    assert load().recipe.train.learning_rate == read
    assert load(f"train.weight_decay={written}").recipe.train.weight_decay == read


@pytest.mark.parametrize("text", ["no", "on", "yes", "Off", "12:30", "2024-01-01", "1_000"])
def test_text_that_yaml_1_1_reads_as_something_else_stays_text(text: str) -> None:
    loaded = load(f"mix.tasks.plus.columns.prompt={text}", f"mix.tasks.plus.domain={text}")
    task = loaded.recipe.mix.tasks["plus"]
    assert (task.columns["prompt"], task.domain) == (text, text)
    # Any reader gets the same text back, those of YAML 1.1 as well.
    assert yaml.safe_load(loaded.to_yaml())["mix"]["tasks"]["plus"]["domain"] == text


def test_leading_zeros_are_decimal_and_hexadecimal_is_read() -> None:
    assert load("train.seed=010").recipe.train.seed == 10
    assert load("train.seed=0x10").recipe.train.seed == 16


def test_a_byte_order_mark_is_no_part_of_the_recipe() -> None:
    Path("sums.yaml").write_text(RECIPE, encoding="utf-8-sig")
    assert load().recipe.train.steps == 100


def test_a_section_whose_lines_are_commented_out_is_left_out() -> None:
    with Path("sums.yaml").open("a") as file:
        file.write("eval:\n#  rows: 3\noutput:\n")
    loaded = load()
    assert loaded.recipe.eval.rows is None
    assert loaded.provenance["eval.rows"] == "default"
    assert loaded.name == "sums"


def test_the_run_is_named_after_the_file_unless_told() -> None:
    Path("sums.yaml").rename("my first sums!.yaml")
    assert load(path="my first sums!.yaml").name == "my-first-sums"
    assert load("output.name=v1.0", path="my first sums!.yaml").name == "v1.0"


# ---------------------------------------------------------------- provenance and round trip


def test_provenance_says_where_each_value_was_given() -> None:
    provenance = load("train.steps=5", "eval.rows=3").provenance
    assert provenance["model.base"] == "sums.yaml:2"
    assert provenance["method.r"] == "sums.yaml:5"
    assert provenance["method.subspace_rank"] == "default"
    assert provenance["train.steps"] == "command line"
    assert provenance["train.batch_size"] == "sums.yaml:9"
    assert provenance["train.micro_batch_size"] == "default"
    assert provenance["mix.weighting"] == "mixes/sums.yaml:2"
    assert provenance["mix.tasks.plus.train.path"] == "mixes/sums.yaml:6"
    assert provenance["mix.tasks.plus.test.split"] == "mixes/sums.yaml:7"
    assert provenance["mix.tasks.plus.columns.prompt"] == "mixes/sums.yaml:8"
    assert provenance["mix.tasks.minus.columns"] == "default"
    assert provenance["eval.rows"] == "command line"
    assert provenance["output.name"] == "default"


@pytest.mark.parametrize("method", ["{name: wide}", "{name: shared, target_modules: [q_proj, v_proj]}"])
def test_every_value_has_its_provenance(method: str) -> None:
    loaded = load(f"method={method}", "train.report_to=[wandb]", "mix.system=")
    assert set(loaded.provenance) == set(flat(loaded.recipe.model_dump()))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("method={name: wide, target_modules: [q_proj]}", "train.report_to=[wandb, trackio]"),
        ("train.steps=", "train.epochs=0.5", "train.learning_rate=1e-7", "output.folder=~/runs"),
        ("mix.weighting=explicit", "mix.tasks.plus.weight=2", "mix.tasks.minus.weight=0.5"),
        ('mix.system="line\\nSay: {yes} # é 🙂 "', 'mix.tasks.plus.system=""', 'model.revision="1234e5"'),
        ("model.revision='0x12'", "mix.tasks.plus.domain='null'", "mix.tasks.minus.domain='<<'", "output.name='1.5'"),
    ],
)
def test_the_resolved_recipe_reads_back_equal(overrides: tuple[str, ...], tmp_path: Path) -> None:
    loaded = load(*overrides)
    (tmp_path / "a run").mkdir()
    Path("a run/recipe.yaml").write_text(loaded.to_yaml(), encoding="utf-8")
    again = load(path="a run/recipe.yaml")
    assert again.recipe == loaded.recipe
    assert again.name == loaded.name  # not 'recipe', which the file is called
    assert again.to_yaml() == loaded.to_yaml()
    assert set(again.provenance.values()) <= {f"a run/recipe.yaml:{n}" for n in range(1, 200)}


def test_recipes_of_different_loads_are_equal_and_of_one_type() -> None:
    assert load().recipe == load().recipe
    assert type(load().recipe) is recipe_type(VOCABULARY)
    assert load().recipe != load("train.seed=1").recipe


# ---------------------------------------------------------------- overrides


def test_steps_take_the_place_of_epochs_and_the_other_way_round() -> None:
    assert load("train.epochs=2").recipe.train.steps is None
    with pytest.raises(InvalidRecipeError, match="exactly one of steps and epochs"):
        load("train.epochs=2", "train.steps=7")


def test_overrides_reach_everything_and_the_last_one_counts() -> None:
    recipe = load(
        "train.steps=5",
        "train.steps=6",
        "train.report_to=[tensorboard, mlflow]",
        "mix.weighting=explicit",
        "mix.tasks.plus.weight=2",
        "mix.tasks.minus={domain: d, train: t, test: t, format: messages, metric: rouge-l, weight: 1e-1}",
        "mix.tasks.plus.system=a=b",
        "output.name=",
    ).recipe
    assert recipe.train.steps == 6
    assert recipe.train.report_to == ("tensorboard", "mlflow")
    assert {name: task.weight for name, task in recipe.mix.tasks.items()} == {"plus": 2.0, "minus": 0.1}
    assert recipe.mix.tasks["minus"].train.path == "t"
    assert recipe.mix.tasks["plus"].system == "a=b"
    assert recipe.output.name == "sums"


def test_another_mix_takes_the_place_of_the_recipes_and_can_be_changed() -> None:
    Path("other.yaml").write_text(MIX.replace("plus", "times"))
    loaded = load("mix.tasks.times.max_new_tokens=3", "mix=other.yaml")
    assert set(loaded.recipe.mix.tasks) == {"times", "minus"}
    assert loaded.recipe.mix.tasks["times"].max_new_tokens == 3
    assert loaded.provenance["mix.tasks.times.domain"] == "other.yaml:5"


def test_replacing_a_section_leaves_nothing_of_the_old_one() -> None:
    loaded = load("method={name: wide}")
    assert loaded.recipe.method == Wide(name="wide")
    assert loaded.provenance["method.r"] == "default"


def test_the_base_type_of_the_recipe_is_what_is_loaded() -> None:
    assert isinstance(load().recipe, Recipe)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.stepz=5", "train.stepz=5: unknown setting; did you mean 'steps'?"),
        ("evall.rows=5", "evall.rows=5: evall: unknown setting; did you mean 'eval'?"),
        ("mix.tasks.pluss.weight=2", "mix.tasks.pluss.weight=2: unknown task; did you mean 'plus'?"),
        ("mix.tasks.plus.colums.x=y", None),
        ("train.steps.x=5", "train.steps.x=5: train.steps is 100, which has nothing inside"),
        ("train.steps", "train.steps: an override is written section.setting=value"),
        ("train..steps=3", "train..steps=3: an override is written section.setting=value"),
        ("=3", "=3: an override is written section.setting=value"),
        ("method.alpha=3", "method.alpha=3: unknown setting of method 'shared'; known: name, r, subspace_rank, "
         "target_modules"),
        ("method.name=shred", "method.name=shred: got 'shred'; must be one of wide, shared; did you mean 'shared'?"),
        ("train.schedule=cosin", "train.schedule=cosin: got 'cosin'; must be one of cosine, linear, constant; "
         "did you mean 'cosine'?"),
        ("method={r: 3}", "method={r: 3}: method.name: missing; required; one of wide, shared"),
        ("mix.tasks.minus={domain: a, train: t, test: t, metric: rouge-l}",
         "mix.tasks.minus={domain: a, train: t, test: t, metric: rouge-l}: mix.tasks.minus.format: missing; required "
         "(Prompt format)"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_one_line(override: str, line: str | None) -> None:
    line = line or ("mix.tasks.plus.colums.x=y: mix.tasks.plus.colums: unknown setting; did you mean 'columns'?")
    assert problems(override) == [f"command line: {line}"]


def test_an_override_that_is_no_yaml_is_one_line() -> None:
    (line,) = problems("train.report_to=[wandb")
    assert line.startswith("command line: train.report_to=[wandb: the value is not valid YAML (")
    (line,) = problems("model.base=\x00")
    assert "character" in line
