"""What a recipe is refused for: every problem at once, each with its line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from malora_cli.errors import RecipeError
from malora_cli.recipe import (
    InvalidRecipeError,
    MethodSettings,
    Recipe,
    Settings,
    Vocabulary,
    load_recipe,
    recipe_schema,
    shipped,
    shipped_files,
)
from malora_cli.recipe.packaged import description_of
from recipe_files import RECIPE, VOCABULARY, Shared, Wide, change, load, problems
from recipe_files import in_a_folder as _in_a_folder  # noqa: F401 - a fixture of every test here

BRACKETS = "Close every bracket and quote, and put commas between values."

# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("steps: 100", "steps: 0", "sums.yaml:8: train.steps: got 0; must be greater than 0"),
        ("steps: 100", "steps: true", "sums.yaml:8: train.steps: got true; must be a whole number"),
        ("steps: 100", "steps: '100'", "sums.yaml:8: train.steps: got '100'; must be a whole number; leave the quotes "
         "out"),
        ("steps: 100", "steps: 1.5", "sums.yaml:8: train.steps: got 1.5; must be a whole number"),
        ("  steps: 100\n", "", "sums.yaml:7: train.epochs: missing; exactly one of steps and epochs must be set, and "
         "neither is"),
        ("batch_size: 24", "micro_batch_size: 5", "sums.yaml:9: train.micro_batch_size: got 5; must divide batch_size, "
         "which is 16"),
        ("batch_size: 24", "micro_batch_size: 32", "sums.yaml:9: train.micro_batch_size: got 32; must divide "
         "batch_size, which is 16"),
        ("2e-3", "0", "sums.yaml:10: train.learning_rate: got 0; must be greater than 0"),
        ("2e-3", ".nan", "sums.yaml:10: train.learning_rate: got NaN; must be a finite number"),
        ("2e-3", ".inf", "sums.yaml:10: train.learning_rate: got Infinity; must be a finite number"),
        ("2e-3", "9" * 5000, "sums.yaml:10: train.learning_rate: got Infinity; must be a finite number"),
        ("2e-3", "fast", "sums.yaml:10: train.learning_rate: got 'fast'; must be a number"),
        ("2e-3", "2e-3\n  warmup_ratio: 2", "sums.yaml:11: train.warmup_ratio: got 2; must be at most 1"),
        ("2e-3", "2e-3\n  seed: -1", "sums.yaml:11: train.seed: got -1; must be at least 0"),
        ("2e-3", "2e-3\n  gradient_checkpointing: yes", "sums.yaml:11: train.gradient_checkpointing: got 'yes'; must "
         "be true or false"),
        ("2e-3", "2e-3\n  report_to: wandb", "sums.yaml:11: train.report_to: got 'wandb'; must be a list"),
        ("2e-3", "2e-3\n  report_to:\n  - trackio\n  - wand", "sums.yaml:13: train.report_to.1: got 'wand'; must be "
         "one of tensorboard, wandb, mlflow, trackio; did you mean 'wandb'?"),
        ("2e-3", "2e-3\n  epochs: 3", "sums.yaml:11: train.epochs: got 3; exactly one of steps and epochs must be set, "
         "and steps is 100 too; null unsets one"),
        ("r: 4", "r: 40", "sums.yaml:3: method: subspace_rank 32 must be at least r 40"),
        ("r: 4", "rank: 4", "sums.yaml:5: method.rank: unknown setting of method 'shared'; did you "
         "mean 'r'?"),
        ("r: 4", "subspace: 4", "sums.yaml:5: method.subspace: unknown setting of method 'shared'; did you mean "
         "'subspace_rank'?"),
        ("name: shared", "name: lora", "sums.yaml:4: method.name: got 'lora'; must be one of wide, shared"),
        ("name: shared", "r_: 1", "sums.yaml:3: method.name: missing; required; one of wide, shared"),
        ("{base: tiny}", "{base: 7}", "sums.yaml:2: model.base: got 7; must be text; put it in quotes"),
        ("{base: tiny}", "{base: [tiny]}", "sums.yaml:2: model.base: got [\"tiny\"]; must be text"),
        ("{base: tiny}", "{base: ''}", "sums.yaml:2: model.base: got ''; must not be empty"),
        ("{base: tiny}", "tiny", "sums.yaml:2: model: got 'tiny'; must be a mapping, as {base: tiny}"),
        ("{base: tiny}", "{base: tiny, dtype: bfloat}", "sums.yaml:2: model.dtype: got 'bfloat'; must be one of "
         "auto, float32, bfloat16, float16; did you mean 'bfloat16'?"),
        ("{base: tiny}", "{}", "sums.yaml:2: model.base: missing; required (Base model: a known short name, a hub id, "
         "a folder or a GGUF file)"),
        ("model: {base: tiny}\n", "\n", "sums.yaml:3: model: missing; required (The base model)"),
        ("mix: mixes/sums.yaml\n", "\n", "sums.yaml:2: mix: missing; required (The mixture of tasks: a shipped mix's "
         "name, a YAML file or the mix itself)"),
        ("mix: mixes/sums.yaml", "mix: [a]", "sums.yaml:6: mix: got [\"a\"]; must be a mapping"),
        ("mix: mixes/sums.yaml", "output: {name: a/b}\nmix: mixes/sums.yaml", "sums.yaml:6: output.name: got 'a/b'; a "
         "run's name becomes a folder: at most 200 letters, digits, '.', '-' and '_', not starting with '.' or '-'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line(old: str, new: str, line: str) -> None:
    change(old, new)
    assert problems() == [line]


def test_a_mistyped_section_is_told_as_missing_and_as_unknown() -> None:
    change("train:\n", "trian:\n")
    assert problems() == [
        "sums.yaml:2: train: missing; required (Length, pace and record of the training)",
        "sums.yaml:7: trian: unknown setting; did you mean 'train'?",
    ]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("uniform", "equal", "mixes/sums.yaml:2: mix.weighting: got 'equal'; must be one of proportional, uniform, "
         "temperature, explicit"),
        ("uniform", "explicit", "mixes/sums.yaml:3: mix.tasks: explicit weighting needs a weight for every task; "
         "missing for 'plus', 'minus'"),
        ("max_new_tokens: 8", "weight: 2", "mixes/sums.yaml:3: mix.tasks: weights go with 'weighting: explicit', not "
         "'uniform'; given for 'minus'"),
        ("max_new_tokens: 8", "weight: -1", "mixes/sums.yaml:17: mix.tasks.minus.weight: got -1; must be at least 0"),
        ("max_new_tokens: 8", "format: messages", "mixes/sums.yaml:17: mix.tasks.minus.format: given twice, first on "
         "line 15; keep one"),
        ("columns: {prompt: question}", "format_: x", "mixes/sums.yaml:8: mix.tasks.plus.format_: unknown "
         "setting; did you mean 'format'?"),
        ("  minus:", "  PLUS:", "mixes/sums.yaml:3: mix.tasks: 'plus' and 'PLUS' are one file name where case does "
         "not count; rename one"),
        ("  minus:", "  a.b:", "mixes/sums.yaml:11: mix.tasks.a.b: got the name 'a.b'; names become file names and "
         "parts of dotted paths: at most 64 letters, digits, - and _"),
        ("  minus:", "  ../x:", "mixes/sums.yaml:11: mix.tasks.../x: got the name '../x'; names become file names and "
         "parts of dotted paths: at most 64 letters, digits, - and _"),
        ("  minus:", "  7:", "mixes/sums.yaml:11: mix.tasks: got the key 7; keys are text; put it in quotes"),
        ("{path: owner/plus, split: test}", "{split: test}", "mixes/sums.yaml:7: mix.tasks.plus.test.path: missing; "
         "required (File, pattern such as data/*.jsonl, folder or hub id; relative to the file that names it, with "
         "environment variables as $NAME)"),
        ("{prompt: question}", "[prompt]", "mixes/sums.yaml:8: mix.tasks.plus.columns: got [\"prompt\"]; must be a "
         "mapping"),
        ("{prompt: question}", "{prompt: 3}", "mixes/sums.yaml:8: mix.tasks.plus.columns.prompt: got 3; must be text; "
         "put it in quotes"),
        ("train: plus.jsonl", "train: [plus.jsonl]", "mixes/sums.yaml:6: mix.tasks.plus.train: got [\"plus.jsonl\"]; "
         "must be a mapping"),
        ("train: plus.jsonl", "train: !!python/object:os.system x", "mixes/sums.yaml:6: mix.tasks.plus.train: got the "
         "tag tag:yaml.org,2002:python/object:os.system; recipes have plain values only; drop the tag"),
    ],
)  # fmt: skip
def test_a_wrong_mix_is_told_with_its_own_line(old: str, new: str, line: str) -> None:
    change(old, new, "mixes/sums.yaml")
    assert problems() == [line]


def test_formats_and_metrics_are_those_of_the_vocabulary() -> None:
    assert problems("mix.tasks.plus.format=message", "mix.tasks.minus.metric=bleu") == [
        "command line: mix.tasks.plus.format=message: got 'message'; unknown format; did you mean 'messages'?",
        "command line: mix.tasks.minus.metric=bleu: mix.tasks.minus.metric.name: got 'bleu'; unknown metric; known: "
        "evaluate, exact-match, rouge-l",
    ]


def test_a_mix_without_tasks_is_refused() -> None:
    assert problems("mix.tasks={}") == ["command line: mix.tasks={}: got {}; must have 1 or more entries"]


def test_everything_wrong_is_told_at_once() -> None:
    change("steps: 100", "steps: -1")
    change("{base: tiny}", "{bse: tiny}")
    change("metric: exact-match\n    max_new_tokens: 8", "metric: exact\n    max_new_tokens: 0", "mixes/sums.yaml")
    assert problems("train.batch_size=x", "foo", "eval.rows=0", "mix.tasks.nope.weight=1") == [
        "command line: foo: an override is written section.setting=value",
        "command line: mix.tasks.nope.weight=1: unknown task; known: minus, plus",
        "sums.yaml:2: model.base: missing; required (Base model: a known short name, a hub id, a folder or a GGUF "
        "file)",
        "sums.yaml:2: model.bse: unknown setting; did you mean 'base'?",
        "mixes/sums.yaml:16: mix.tasks.minus.metric.name: got 'exact'; unknown metric; did you mean 'exact-match'?",
        "mixes/sums.yaml:17: mix.tasks.minus.max_new_tokens: got 0; must be greater than 0",
        "sums.yaml:8: train.steps: got -1; must be greater than 0",
        "command line: train.batch_size=x: got 'x'; must be a whole number",
        "command line: eval.rows=0: got 0; must be greater than 0",
    ]


def test_a_mix_that_is_not_there_hides_no_other_problem() -> None:
    change("mixes/sums.yaml", "mixes/sum.yaml")
    change("steps: 100", "steps: -1")
    folder = Path.cwd()
    assert problems("mix.tasks.plus.weight=1") == [
        f"sums.yaml:6: mix: got 'mixes/sum.yaml'; file not found in {folder}",
        "sums.yaml:8: train.steps: got -1; must be greater than 0",
    ]


def test_names_that_no_file_can_have_are_one_line() -> None:
    long = f"{'m' * 300}.yaml"
    [problem] = problems(f"mix={long}")
    assert problem.endswith(f"file not found in {Path.cwd()}")
    Path("loop.jsonl").symlink_to("loop.jsonl")
    for given in (f"{'s' * 300}.jsonl", "loop.jsonl"):
        assert load(f"mix.tasks.plus.train={given}").recipe.mix.tasks["plus"].train.path.endswith(given)


def test_a_mix_that_is_no_yaml_hides_no_other_problem() -> None:
    change("uniform", "{", "mixes/sums.yaml")
    change("steps: 100", "steps: -1")
    first, second = problems()
    assert first == f"mixes/sums.yaml:4:7: not valid YAML: expected ',' or '}}', but got ':'. {BRACKETS}"
    assert second == "sums.yaml:8: train.steps: got -1; must be greater than 0"


def test_long_values_are_cut_and_lines_stay_lines() -> None:
    (line,) = problems(f'train.schedule="{"x" * 500}\\n"')
    (line,) = problems(f'mix.tasks.plus.metric="a\\n{"x" * 500}"')
    shown = line.split(": got ")[1]
    assert shown.startswith("'a\\nxxx")
    assert len(shown) < 120


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "r.yaml: the file is empty, not a recipe. "
         "Start from one that works: `malora recipes cp quickstart`."),
        (b"# only a comment\n", "r.yaml: the file is empty, not a recipe. "
         "Start from one that works: `malora recipes cp quickstart`."),
        (b"- a\n- b\n", 'r.yaml:1: got ["a", "b"]; a recipe is a mapping. '
         "Start from one that works: `malora recipes cp quickstart`."),
        (b"\n\nhello\n", "r.yaml:3: got 'hello'; a recipe is a mapping. "
         "Start from one that works: `malora recipes cp quickstart`."),
        (b"model: \xff\n", "r.yaml: not UTF-8 text (byte 0xff at position 7). Save it as UTF-8."),
        (b"model:\n\tbase: x\n", "r.yaml:2:1: not valid YAML: found character '\\t' that cannot start any token. "
         "Indent with spaces, not tabs."),
        (b"model: {base: x\ntrain: 1\n", f"r.yaml:2:6: not valid YAML: expected ',' or '}}', but got ':'. {BRACKETS}"),
        (b"a: 1\n b: 2\n", "r.yaml:2:3: not valid YAML: mapping values are not allowed here. Put a space after "
         "each colon, and indent the settings of a section alike."),
        (b"a: 1\n---\nb: 1\n", "r.yaml:2:1: not valid YAML: but found another document. One file holds one mapping "
         "of settings."),
        (b"a: *x\n", "r.yaml:1:4: not valid YAML: found undefined alias 'x'. Put text that begins with * in quotes."),
        (b"a: \x01\n", "r.yaml: not valid YAML: special characters are not allowed. Save it as plain text."),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recipe_is_one_line(content: bytes, message: str) -> None:
    Path("r.yaml").write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load(path="r.yaml")
    assert str(caught.value) == message
    assert not isinstance(caught.value, InvalidRecipeError)


def test_a_missing_file_a_folder_and_a_locked_file_are_one_line_each(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^no\.yaml: file not found\. `malora recipes ls` lists"):
        load(path="no.yaml")
    with pytest.raises(RecipeError, match=r"^mixes: this is a folder\. Name a \.yaml file in it\.$"):
        load(path="mixes")
    outside = tmp_path.parent / "no.yaml"
    with pytest.raises(RecipeError, match=rf"^{outside}: file not found"):
        load(path="../no.yaml")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_one_line() -> None:
    Path("sums.yaml").chmod(0)
    with pytest.raises(RecipeError, match=r"^sums\.yaml: cannot be read \(Permission denied\)$"):
        load()


def test_duplicate_keys_are_told_with_both_lines() -> None:
    change("  batch_size: 24", "  steps: 24")
    change("mix: mixes/sums.yaml", "mix: mixes/sums.yaml\nmodel: {base: other}")
    assert problems() == [
        "sums.yaml:7: model: given twice, first on line 2; keep one",
        "sums.yaml:10: train.steps: given twice, first on line 9; keep one",
    ]


@pytest.mark.parametrize("text", ["a: &x {b: *x}\n", "a: &x [*x]\n", "a: &x {<<: *x}\n"])
def test_an_alias_inside_what_it_repeats_is_refused(text: str) -> None:
    Path("r.yaml").write_text(text)
    assert any("alias stands inside" in line or "<< takes a mapping" in line for line in problems(path="r.yaml"))


# ---------------------------------------------------------------- schema


def checks(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """The part of JSON Schema that recipes need, read from the standard."""
    if "$ref" in schema:
        return checks(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root)
    if "anyOf" in schema:
        return any(checks(option, value, root) for option in schema["anyOf"])
    if "oneOf" in schema:
        return sum(checks(option, value, root) for option in schema["oneOf"]) == 1
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "pattern" in schema and not (isinstance(value, str) and re.search(schema["pattern"], value)):
        return False
    if "exclusiveMinimum" in schema and isinstance(value, (int, float)) and value <= schema["exclusiveMinimum"]:
        return False
    types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
    if "type" in schema and schema["type"] in types and not isinstance(value, types[schema["type"]]):
        return False
    if isinstance(value, list):
        return all(checks(schema.get("items", {}), item, root) for item in value)
    if isinstance(value, dict):
        properties, rest = schema.get("properties", {}), schema.get("additionalProperties", {})
        return set(schema.get("required", ())) <= set(value) and all(
            checks(properties[key], inner, root)
            if key in properties
            else rest is not False and checks(rest, inner, root)
            for key, inner in value.items()
        )
    return True


def written(path: str = "sums.yaml") -> dict[str, Any]:
    # PyYAML's own reader takes 2e-3 for text.
    return dict(yaml.safe_load(Path(path).read_text().replace("2e-3", "0.002")))


def test_the_schema_takes_what_the_loader_takes_and_refuses_what_it_refuses() -> None:
    schema = recipe_schema(VOCABULARY)
    json.dumps(schema)
    recipe = written()
    assert checks(schema, recipe, schema)
    inline = {**recipe, "mix": written("mixes/sums.yaml")}
    assert checks(schema, inline, schema)
    assert checks(schema, yaml.safe_load(load().to_yaml()), schema)
    assert checks(schema, {**recipe, "method": "shared"}, schema)
    assert not checks(schema, {**recipe, "method": "share"}, schema)
    assert not checks(schema, {**recipe, "trian": {}}, schema)
    assert not checks(schema, {**recipe, "method": {"name": "lora"}}, schema)
    assert not checks(schema, {**recipe, "method": {"r": 3}}, schema)
    assert not checks(schema, {**recipe, "train": {"steps": 0}}, schema)
    for metric, fits in (
        ({"name": "exact-match", "ignore": ["case"]}, True),
        ("exact", False),
        ({"ignore": ["case"]}, False),
        ({"name": "exact-match", "ignore": ["spaces"]}, False),
        ({"name": "rouge-l", "ignore": ["case"]}, False),
    ):
        inline["mix"]["tasks"]["plus"]["metric"] = metric
        assert checks(schema, inline, schema) == fits, metric


@pytest.mark.parametrize("methods", [{"wide": Wide}, {"wide": Wide, "shared": Shared}])
def test_every_setting_of_the_schema_is_described(methods: dict[str, type[MethodSettings]]) -> None:
    schema = recipe_schema(Vocabulary(methods, ["f"], VOCABULARY.metrics))
    sections = {"Recipe": schema, **schema["$defs"]}
    settings = [(s, name, field) for s, section in sections.items() for name, field in section["properties"].items()]
    assert len(settings) > 50
    assert [(section, name) for section, name, field in settings if len(field.get("description", "")) < 4] == []


def test_a_vocabulary_of_one_method_works() -> None:
    one = Vocabulary({"shared": Shared}, VOCABULARY.formats, VOCABULARY.metrics)
    assert load_recipe(Path("sums.yaml"), vocabulary=one).recipe.method == Shared(name="shared", r=4)
    with pytest.raises(
        InvalidRecipeError, match=r"^command line: method.name=shard: got 'shard'; must be one of shared"
    ):
        load_recipe(Path("sums.yaml"), ["method.name=shard"], vocabulary=one)
    with pytest.raises(InvalidRecipeError, match=r"^command line: method.x=1: unknown setting of method 'shared'"):
        load_recipe(Path("sums.yaml"), ["method.x=1"], vocabulary=one)
    with pytest.raises(InvalidRecipeError) as caught:
        load_recipe(Path("sums.yaml"), ["method={x: 1}"], vocabulary=one)
    assert caught.value.problems == (
        "command line: method={x: 1}: method.name: missing; required; one of shared",
        "command line: method={x: 1}: method.x: unknown setting",
    )


# ---------------------------------------------------------------- settings and files that are shipped


def all_settings(kind: type[Settings]) -> Iterator[type[Settings]]:
    for below in kind.__subclasses__():
        yield below
        yield from all_settings(below)


def test_settings_are_frozen_closed_and_finite() -> None:
    kinds = list(all_settings(Settings))
    assert Recipe in kinds
    for kind in kinds:
        config = kind.model_config
        assert (config["frozen"], config["extra"], config["allow_inf_nan"]) == (True, "forbid", False)
    with pytest.raises(ValidationError, match="frozen"):
        load().recipe.train.steps = 3  # type: ignore[misc]


def test_shipped_files_are_found_in_a_checkout_and_in_a_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    top = Path(__file__).parents[1]
    assert shipped("recipes") == top / "recipes"
    assert shipped("data_mixes") == top / "data_mixes"
    package = tmp_path / "site-packages" / "malora_cli"
    inside = package / "_shipped" / "recipes"
    inside.mkdir(parents=True)
    (inside / "b.yaml").write_text(RECIPE)
    (inside / "a.yaml").write_text("model: {}\n")
    (inside / "notes.txt").touch()
    monkeypatch.setattr("malora_cli.recipe.packaged.__file__", str(package / "recipe" / "shipped.py"))
    assert list(shipped_files("recipes").items()) == [("a", inside / "a.yaml"), ("b", inside / "b.yaml")]
    assert [description_of(path) for path in shipped_files("recipes").values()] == ["", "learns two sums"]
    with pytest.raises(RecipeError, match="Install the package again"):
        shipped("data_mixes")


def test_the_description_is_not_the_line_for_the_editor(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("# yaml-language-server: $schema=x.json\n# for people\nmodel: {}\n")
    assert description_of(path) == "for people"
    path.write_text("")
    assert description_of(path) == ""


def test_reading_a_recipe_needs_no_torch() -> None:
    code = (
        "import sys, malora_cli.recipe; print(sorted({'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)))"
    )
    source = str(Path(__file__).parents[1] / "src")
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert result.stdout.strip() == "[]"
