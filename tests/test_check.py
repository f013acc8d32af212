"""The statement before training: its figures against slow counts, and that measuring changes nothing."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from json_output import assert_documented
from malora_cli.cli import main
from malora_cli.data.batch import Packer
from malora_cli.data.statement import longest_step, rendered, state
from malora_cli.train.materials import gather, prepare_model
from malora_cli.train.probe import measure_longest_step
from malora_cli.train.run import train
from train_runs import SilentView, load, losses, rewrite, same_weights, train_run, workplace


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return workplace(tmp_path, tiny_model)


def _out(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    captured = capsys.readouterr()
    assert caught.value.code == code, captured.err
    return captured.out if code == 0 else captured.err


def _plain(output: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", output)


def test_the_figures_are_those_of_a_slow_count(recipe: Path) -> None:
    materials = gather(load(recipe, "train.micro_batch_tokens=100", "train.max_length=60").recipe)
    statement = state(materials.mixture, materials.packer)
    examples = [materials.mixture[position] for position in range(36)]
    for number, entry in enumerate(statement.tasks):
        split = entry.task.train
        rows = split.examples(range(len(split)), number)
        labels = sum(last - first for example in rows for first, last in example.spans)
        assert split.label_tokens == labels
        assert entry.input_tokens == sum(len(example.input_ids) for example in rows) - labels
        assert entry.passes == pytest.approx(12 / len(split))
    tokens = [sum(len(example.input_ids) for example in examples[at : at + 6]) for at in range(0, 36, 6)]
    packed = [len(materials.packer(examples[at : at + 6])) for at in range(0, 36, 6)]
    assert statement.step_tokens == pytest.approx(sum(tokens) / 6)
    assert statement.micro_batches == pytest.approx(sum(packed) / 6)
    assert statement.filled == pytest.approx(sum(tokens) / (100 * sum(packed)))


def test_a_task_that_says_nothing_of_test_rows_and_domain_has_both(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def less(mix: dict[str, Any]) -> None:
        for name in ("test", "domain"):
            del mix["tasks"]["add"][name]

    rewrite(recipe.parent / "mix.yaml", less)
    said = "Rows held out where neither test nor holdout is given (5%, at most 200, by mix.seed): 2 of add"
    printed = _plain(_out(capsys, "check", str(recipe), "--no-step"))
    assert said in printed
    assert printed.count("neither test nor holdout") == 1
    loaded = load(recipe)
    assert (loaded.recipe.mix.tasks["add"].domain, loaded.recipe.mix.tasks["copy"].domain) == ("add", "words")
    assert loaded.provenance["mix.tasks.add.domain"] == "default"


def test_no_step_is_longer_than_the_longest(recipe: Path) -> None:
    materials = gather(load(recipe).recipe)
    longest = sum(len(example.input_ids) for example in longest_step(materials.mixture))
    lengths = sorted((n for task in materials.tasks for n in task.train.rows["tokens"]), reverse=True)
    assert longest == sum(lengths[:6])


def test_a_rendered_example_is_the_text_and_what_is_supervised_of_it(recipe: Path) -> None:
    materials = gather(load(recipe).recipe)
    example = materials.tasks[2].train.examples([0], 2)[0]
    parts = rendered(example, materials.tokenizer)
    assert "".join(text for text, _ in parts) == materials.tokenizer.decode(example.input_ids)
    assert [text for text, supervised in parts if supervised] == ["0<|im_end|>"]


def test_the_command_states_it_all(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = _out(capsys, "check", str(recipe))
    assert "Mixture: 6 steps of 6 rows" in out
    assert re.search(r"^add +sums +2\d ", out, re.MULTILINE)
    assert out.count("supervised between » and «") == 3
    assert "»0<|im_end|>«" in out
    assert re.search(
        r"The longest step: \d+ tokens in [\d.]+ s, peak memory [\d.]+ GiB; at its pace training takes \d", out
    )
    assert not (recipe.parent / "runs").exists()
    assert "The longest step" not in _out(capsys, "check", str(recipe), "--no-step")


def test_the_same_as_json(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (recipe.parent / "add.train.jsonl").open("a") as file:
        file.write('{"question": "x", "answer": ""}\n')
    drop = "mix.tasks.add.bad_rows=drop"
    found = json.loads(_out(capsys, "check", str(recipe), "--json", drop))
    assert_documented("malora check", found)
    materials = gather(load(recipe, drop).recipe)
    statement = state(materials.mixture, materials.packer)
    tasks = {task["name"]: task for task in found["tasks"]}
    for entry in statement.tasks:
        told, train = tasks[entry.task.name], entry.task.train
        assert (told["rows"], told["label_tokens"]) == (len(train), train.label_tokens)
        assert told["input_tokens"] + told["label_tokens"] == train.tokens
        assert told["share"] == pytest.approx(1 / 3, abs=0.05)
    [unused] = tasks["add"]["unused"]["train"]
    assert (unused["rows"], unused["samples"]) == (1, [31])
    assert (found["schema"], found["steps"], found["batch_size"]) == (1, 6, 6)
    assert (found["dtype"], found["quantise"], found["device"]) == ("float32", None, "cpu")
    example = tasks["add"]["example"]
    assert [part["text"] for part in example if part["supervised"]] == ["0<|im_end|>"]
    assert "0+0=" in "".join(part["text"] for part in example if not part["supervised"])
    cost = found["longest_step"]
    rate = cost["seconds"] / cost["tokens"]
    assert cost["training_seconds"] == pytest.approx(rate * found["step_tokens"] * found["steps"])
    found = json.loads(_out(capsys, "check", str(recipe), "--no-step", "--json", drop))
    assert_documented("malora check", found)
    assert found["longest_step"] is None


def test_long_lists_are_folded_on_a_terminal(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("add", "upper", "copy"):
        with (recipe.parent / f"{name}.train.jsonl").open("a") as file:
            file.write('{"question": "x", "answer": ""}\n')
    drop = [f"mix.tasks.{name}.bad_rows=drop" for name in ("add", "upper", "copy")]
    monkeypatch.setattr("malora_cli.cli._terminal._FOLDED", 1)
    check, dry_run = ("check", str(recipe), "--no-step"), ("train", str(recipe), "--dry-run")
    whole = _out(capsys, *check, *drop)
    assert "--full" not in whole
    for name, value in (("TERM", "xterm"), ("COLUMNS", "200")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    folded = [_plain(_out(capsys, *arguments, *drop)) for arguments in (check, dry_run)]
    for out in folded:
        assert "… 2 more tasks; --full shows all 3" in out
        assert "… 2 more lines on rows and columns; --full shows all 3" in out
        assert out.count("train row is not used") == 1
        assert len(re.findall(r"^(?:copy|upper|add) +(?:words|sums|\d)", out, re.MULTILINE)) == 2, (
            "one row of each table"
        )
    assert folded[0].count("supervised between » and «") == 1
    assert "… 2 more first rows; --full shows all 3" in folded[0]
    assert "mix.tasks.copy.domain" in folded[1]
    assert "mix.tasks.add.domain" not in folded[1]
    assert "… 2 more tasks with their settings; --full shows all 3" in folded[1]
    full = _plain(_out(capsys, *check, "--full", *drop))
    assert [line.split() for line in full.splitlines()] == [line.split() for line in whole.splitlines()]


def test_what_is_not_used_is_told(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (recipe.parent / "add.train.jsonl").open("a") as file:
        file.write('{"question": "x", "answer": ""}\n')
    out = _out(capsys, "check", str(recipe), "--no-step", "mix.tasks.add.bad_rows=drop", "mix.tasks.copy.max_rows=3")
    assert "add: 1 train row is not used, an empty completion, so nothing of it is supervised (row 31)" in out
    assert re.search(r"^copy: 1[1-4] train rows are not used, beyond max_rows \(row ", out, re.MULTILINE)


def test_a_task_without_anything_supervised_fails(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "add.train.jsonl").write_text('{"question": "x", "answer": ""}\n' * 3)
    err = _out(capsys, "check", str(recipe), "mix.tasks.add.bad_rows=drop", code=2)
    assert err.startswith("error: task 'add': ")
    assert "no row can be used (3 with an empty completion, so nothing of it is supervised)" in err


def test_measuring_leaves_the_model_as_it_was(recipe: Path) -> None:
    loaded = load(recipe)
    materials = gather(loaded.recipe)
    model = prepare_model(loaded.recipe, materials)
    before, state_before = {n: p.clone() for n, p in model.named_parameters()}, torch.get_rng_state()
    cost = measure_longest_step(model, materials.mixture, Packer(3), loaded.recipe.train)
    assert cost.seconds > 0
    assert cost.peak_bytes > 2**20
    assert cost.training_seconds(cost.tokens * 3) == pytest.approx(3 * cost.seconds)
    assert torch.equal(torch.get_rng_state(), state_before)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_a_run_that_is_announced_is_the_same_run(recipe: Path) -> None:
    plain = train_run(recipe, "output.name=plain")
    told: list[int] = []
    loaded = load(recipe, "output.name=told")
    announced = train(loaded, SilentView(), announce=lambda materials, cost: told.append(cost.tokens))
    assert told
    assert losses(plain) == losses(announced)
    assert same_weights(plain, announced)


def test_training_says_what_each_task_got(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = _out(capsys, "train", str(recipe))
    assert out.index("Mixture: 6 steps") < out.index("The longest step") < out.index("step 1/6")
    assert "share of rows, and target: copy 33.3% (33.3%)  upper 33.3% (33.3%)  add 33.3% (33.3%)" in out


def test_the_manifest_counts_and_samples_what_was_not_used(recipe: Path) -> None:
    with (recipe.parent / "add.train.jsonl").open("a") as file:
        file.write('{"question": "' + "x" * 600 + '", "answer": "y"}\n')
    manifest = train_run(recipe, "train.max_length=500").manifest
    data, kept = manifest.train_data["add"], manifest.validation_data["add"]
    assert (data.read, data.rows + kept.rows, data.cut) == (31, 30, 0)
    assert kept.rows >= 1
    assert kept.unused == []
    assert [(unused.reason, unused.rows, unused.samples) for unused in data.unused] == [
        ("longer than 500 tokens", 1, [31])
    ]


def test_names_of_classes_are_stated(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"question": ["a", "b"], "answer": [0, 1]}
    features = Features({"question": Value("string"), "answer": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict(rows, features=features).to_parquet(recipe.parent / "copy.parquet")
    train = f"mix.tasks.copy.train={recipe.parent / 'copy.parquet'}"
    out = _out(capsys, "check", str(recipe), train, "--no-step")
    assert "copy: answer: names of 2 classes (answer.number is the number)" in out
    assert "»no<|im_end|>«" in out
