"""``malora init``: what rows of many layouts are taken for, what is asked, and that what it writes trains."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetBuilder, Features, Image, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malora_cli.cli import main
from malora_cli.data.formats import FORMATS
from malora_cli.errors import DataError, RunError
from malora_cli.init import guess_task
from malora_cli.init.infer import _ANSWERS, _CHOICES, _CONTEXTS, _CONVERSATIONS, _PROMPTS
from malora_cli.named import load_named
from malora_cli.recipe import SourceSettings

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good morning to all of you at home"}]
SHARED = [{"from": "human", "value": "2 + 3"}, {"from": "gpt", "value": "5"}]
LONG = "It is a long answer of more than some few words."

#: A row, and format, columns and metric that rows like it have.
LAYOUTS: dict[str, tuple[dict[str, Any], str, dict[str, str], str]] = {
    "prompt, completion": ({"prompt": "a", "completion": LONG}, "prompt-completion", {}, "rouge-l"),
    "question, answer": (
        {"question": "2+3", "answer": "5"},
        "prompt-completion",
        {"prompt": "question", "completion": "answer"},
        "last-number",
    ),
    "numbers": ({"question": "2+3", "answer": 5}, "prompt-completion", {"completion": "answer"}, "last-number"),
    "instruction, response": (
        {"instruction": "Say hello", "response": LONG},
        "prompt-completion",
        {"prompt": "instruction", "completion": "response"},
        "rouge-l",
    ),
    "Alpaca": ({"instruction": "Sum", "input": "2 3", "output": "5"}, "alpaca", {}, "last-number"),
    "Alpaca without input": ({"instruction": "Say hello", "output": "hello"}, "alpaca", {}, "exact-match"),
    "OpenAI": ({"messages": TURNS}, "messages", {}, "rouge-l"),
    "OpenAI by another name": ({"dialogue": TURNS, "id": 3}, "messages", {"messages": "dialogue"}, "rouge-l"),
    "ShareGPT": ({"conversations": SHARED}, "sharegpt", {}, "last-number"),
    "ShareGPT by another name": ({"chat": SHARED}, "sharegpt", {"conversations": "chat"}, "last-number"),
    "roles in conversations": ({"conversations": TURNS}, "messages", {"messages": "conversations"}, "rouge-l"),
    "choices by position": (
        {"question": "Which melts ice?", "choices": ["cold", "heat"], "answer": 1},
        "multiple-choice",
        {},
        "accuracy",
    ),
    "choices by text": (
        {"question": "Which melts ice?", "options": ["cold", "heat"], "answer": "heat"},
        "multiple-choice",
        {"choices": "options"},
        "accuracy",
    ),
    "classes": ({"text": "Great film", "label": "good"}, "prompt-completion", {"prompt": "text"}, "label"),
    "capitals": ({"Prompt": "a", "Completion": "b c"}, "prompt-completion", {"prompt": "Prompt"}, "label"),
    "with an id": ({"id": 7, "question": "a", "answer": LONG}, "prompt-completion", {"prompt": "question"}, "rouge-l"),
    "translation": ({"source": "Haus", "target": "house"}, "prompt-completion", {"completion": "target"}, "label"),
    "summary": ({"text": LONG, "summary": LONG}, "prompt-completion", {"completion": "summary"}, "rouge-l"),
}
WRITERS = {
    ".jsonl": lambda path, rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows)),
    ".json": lambda path, rows: path.write_text(json.dumps(rows)),
    ".parquet": lambda path, rows: Dataset.from_list(rows).to_parquet(path),
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_many_layouts(layout: str, suffix: str, tmp_path: Path) -> None:
    row, form, columns, metric = LAYOUTS[layout]
    path = tmp_path / f"x{suffix}"
    WRITERS[suffix](path, [row] * 16)
    found = guess_task(SourceSettings(path=str(path)), "x")
    expected = metric if metric != "exact-match" else "label"  # sixteen times the same answer is a class
    assert (found.format, found.metric) == (form, expected)
    assert columns.items() <= found.columns.items()
    assert found.max_new_tokens >= 16
    assert found.reasons["format"]
    assert not found.drop


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_tables(suffix: str, mark: str, tmp_path: Path) -> None:
    path = tmp_path / f"sums{suffix}"
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(mark)
        rows = csv.writer(file, delimiter="," if suffix == ".csv" else "\t")
        rows.writerows([["question", "answer"], *(["a, b", f"w{number} x"] for number in range(9))])
    found = guess_task(SourceSettings(path=str(path)), "sums")
    assert (found.format, found.metric) == ("prompt-completion", "exact-match")
    assert found.columns == {"prompt": "question", "completion": "answer"}


REFUSED = {
    "preference pairs": ({"prompt": "a", "chosen": "b", "rejected": "c"}, r"pairs of a better and a worse.*DPOTrainer"),
    "plain text": ({"text": "abc"}, r"plain texts without a question and an answer.*SFTTrainer"),
    "pictures": ({"image": "a.png", "question": "a", "answer": "b"}, r"pictures or sounds"),
    "names that say nothing": ({"a": "b", "c": "d"}, r"\(a, c\) do not say .* --prompt COLUMN --completion COLUMN"),
    "two questions": ({"question": "a", "problem": "b", "answer": "c"}, r"do not say which is the question"),
    "two answers": ({"question": "a", "answer": "b", "response": "c"}, r"do not say which is the question"),
    "a context": ({"context": "a", "question": "b", "answer": "c"}, r"--prompt \"\{\{ context \}\}"),
    "no answers": ({"question": "a", "answer": ""}, r"none of its rows is an example.*has an empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_asked_or_is_for_others(case: str, tmp_path: Path) -> None:
    row, message = REFUSED[case]
    WRITERS[".jsonl"](tmp_path / "x.jsonl", [row] * 3)
    with pytest.raises(DataError, match=message):
        guess_task(SourceSettings(path=str(tmp_path / "x.jsonl")), "x")


KNOWN = {*_PROMPTS, *_ANSWERS, *_CHOICES, *_CONTEXTS, *_CONVERSATIONS, "chosen", "rejected"}
NAMES = st.from_regex(r"[a-z]{1,9}", fullmatch=True).filter(
    lambda name: name not in KNOWN | {"image", "audio", "video"}
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=2, max_size=3, unique=True))
def test_unknown_names_are_never_taken_for_something(names: list[str], tmp_path: Path) -> None:
    WRITERS[".jsonl"](tmp_path / "x.jsonl", [dict.fromkeys(names, "some text")] * 3)
    with pytest.raises(DataError, match="do not say which is the question"):
        guess_task(SourceSettings(path=str(tmp_path / "x.jsonl")), "x")
    told = guess_task(SourceSettings(path=str(tmp_path / "x.jsonl")), "x", names[1], names[0])
    assert told.columns == {"prompt": names[1], "completion": names[0]}


def test_what_is_guessed_stands_in_the_mix_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    rows = [{"question": f"copy w{number}", "answer": f"w{number} x"} for number in range(40)]
    WRITERS[".jsonl"](tmp_path / "data" / "sums.train.jsonl", [*rows, {"question": "none", "answer": ""}])
    WRITERS[".jsonl"](tmp_path / "data" / "sums.test.jsonl", rows[:8])
    Path("other.csv").write_text("passage,query,answer\n" + "".join(f"p{n},q{n},{n}\n" for n in range(30)))
    arguments = ["--base", str(tiny_model), "--prompt", "{{ passage }}\n\n{{ query }}", "--completion", "answer"]
    assert status("init", "--out", "b", "numbers=other.csv", *arguments) == 0
    assert status("init", "data/sums.train.jsonl", "--out", "a", "--base", str(tiny_model)) == 0
    out = capsys.readouterr().out
    assert "next:    malora check a/recipe.yaml, then malora train a/recipe.yaml" in out
    mix = Path("a/mix.yaml").read_text()
    assert re.search(r"^  sums:$", mix, re.MULTILINE)
    assert "test: ../data/sums.test.jsonl  # it lies beside the training rows" in mix
    assert "metric: exact-match  # answers of 2 words at most" in mix
    assert "bad_rows: drop  # 1 of the first 41 rows; one has an empty" in mix
    assert Path("a/.gitignore").read_text() == "runs/\n"
    for name in ("a", "b"):
        assert load_named(f"{name}/recipe.yaml").recipe.model.base == str(tiny_model)
        quick = ["train.steps=1", "train.micro_batch_size=4"]
        assert status("train", f"{name}/recipe.yaml", *quick, f"output.name={name}", "--no-step") == 0
    capsys.readouterr()
    assert status("init", "data/sums.train.jsonl", "--out", "a") == 2
    line = "error: a/recipe.yaml and a/mix.yaml: they are there already, and are not overwritten. Move them away.\n"
    assert capsys.readouterr().err == line


def test_nothing_stays_where_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    WRITERS[".jsonl"](tmp_path / "x.jsonl", [{"question": "a", "answer": "b"}] * 3)
    for arguments, message in (
        (["x.jsonl", "./x.jsonl"], "FILE: two tasks would be called 'x'. Name the tasks: TASK=FILE."),
        (["none.jsonl"], "none.jsonl: file not found"),
        (["x.jsonl", "--method", "malorra"], "did you mean 'malora'?"),
        (
            ["x.jsonl", "--prompt", "question"],
            "x.jsonl: a question and an answer go together. Add --completion COLUMN.",
        ),
    ):
        assert status("init", *arguments) == 2
        assert message in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_every_format_that_is_guessed_is_one() -> None:
    assert {form for _, form, _, _ in LAYOUTS.values()} <= set(FORMATS)


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(str(caught.value.code))


def test_the_steps_that_fit_into_some_minutes(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from malora_cli.init import pace

    rows = "".join(f'{{"prompt": "say {n}", "completion": "{n}"}}\n' for n in range(400))
    (tmp_path / "counting.jsonl").write_text(rows)

    def steps_of(name: str, *minutes: str) -> tuple[dict[str, Any], str]:
        written = tmp_path / name / "recipe.yaml"
        said = ["init", str(tmp_path / "counting.jsonl"), "--out", str(written.parent), "--base", str(tiny_model)]
        with pytest.raises(SystemExit) as caught:
            main([*said, *minutes])
        assert not caught.value.code
        return load_named(written).recipe.train.model_dump(), written.read_text()

    def paced(seconds: float) -> None:
        measure = pace.measured
        monkeypatch.setattr(
            pace, "measured", lambda *given: replace(measure(*given), tokens=1000, seconds=1000 * seconds)
        )

    assert steps_of("plain")[0]["epochs"] == 1
    paced(1e-9)
    train, text = steps_of("fast", "--minutes", "10")
    assert "3 epochs, which take less than 10 min" in text
    epoch = train["steps"] / 3
    paced(0.01)
    train, text = steps_of("slow", "--minutes", "1.5")
    assert 0 < train["steps"] < epoch
    assert f"steps: {train['steps']}  # 1.5 min at 100 tokens/s, measured here" in text


SPLITS = {"train": "5", "test": None, "validation": "7"}  # tests of the hub often keep their answers to themselves


def _write_dataset(folder: Path) -> None:
    """A folder as datasets of the hub are, with a config."""
    files = "".join(f"  - {{split: {split}, path: {split}.jsonl}}\n" for split in SPLITS)
    folder.mkdir()
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: main\n  data_files:\n{files}---\n")
    for split, answer in SPLITS.items():
        rows = [{"question": f"2+{n}", "answer": answer and f"So it is.\n#### {answer}"} for n in range(3)]
        WRITERS[".jsonl"](folder / f"{split}.jsonl", rows)


@pytest.mark.parametrize("given", ["sums", "owner/sums", "owner/sums:main", "sums=owner/other:main"])
def test_a_folder_or_a_dataset_of_the_hub(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from malora_cli.data import sources

    monkeypatch.chdir(tmp_path)
    _write_dataset(tmp_path / "sums")
    builder_of, asked = sources.load_dataset_builder, []

    def here(path: str, **options: Any) -> DatasetBuilder:
        asked.append(path)
        return builder_of(str(tmp_path / "sums"), **options)

    monkeypatch.setattr(sources, "load_dataset_builder", here)
    assert status("init", given, "--out", "new") == 0
    [(name, task)] = load_named(tmp_path / "new" / "recipe.yaml").recipe.mix.tasks.items()
    path = given.partition("=")[2] or given
    path, _, config = path.partition(":")
    assert name == "sums"
    assert set(asked) == {str(tmp_path / "sums") if given == "sums" else path}
    assert task.train.path == (str(tmp_path / "sums") if given == "sums" else path)
    assert task.train.config == task.test.config == (config or None)
    assert (task.train.split, task.test.split) == (None, "validation")
    assert task.metric.name == "last-number"
    mix = (tmp_path / "new" / "mix.yaml").read_text()
    assert "# the split validation has answers" in mix
    assert "# all answers end in #### and a number" in mix


def test_test_rows_are_those_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is no example does not drive the others out; a split that cannot be read is told."""
    monkeypatch.chdir(tmp_path)
    _write_dataset(tmp_path / "sums")
    test = tmp_path / "sums" / "test.jsonl"
    test.write_text('{"question": "2+2", "answer": "4"}\n{"question": "2+2", "answer": ""}\n')
    found = guess_task(SourceSettings(path="sums", config="main"), "sums")
    assert {role: source.split for role, source in found.held_out.items()} == {
        "test": "test",
        "validation": "validation",
    }
    assert found.drop
    assert found.reasons["bad_rows"].startswith("some held-out rows are no examples; one has an empty ")
    test.write_text('{"question": "2+2", "solved": "4"}\n')
    found = guess_task(SourceSettings(path="sums", config="main"), "sums")
    assert {role: source.split for role, source in found.held_out.items()} == {"test": "validation"}
    test.write_text('{"question": \n')
    with pytest.raises(DataError, match="is not valid JSON"):
        guess_task(SourceSettings(path="sums", config="main"), "sums")
    Dataset.from_list([{"question": "2+2", "answer": "4"}]).save_to_disk(str(tmp_path / "saved"))
    assert not guess_task(SourceSettings(path="saved"), "saved").held_out, "it is one split"


def test_files_beside_the_training_rows_are_held_out(tmp_path: Path) -> None:
    for name in ("sums-train", "sums-test", "sums-dev", "train", "val"):
        WRITERS[".jsonl"](tmp_path / f"{name}.jsonl", [{"question": "2+2", "answer": "4"}])

    def held_out(name: str) -> dict[str, str]:
        found = guess_task(SourceSettings(path=str(tmp_path / name)), "sums").held_out
        return {role: Path(source.path).name for role, source in found.items()}

    assert held_out("sums-train.jsonl") == {"test": "sums-test.jsonl", "validation": "sums-dev.jsonl"}
    assert held_out("train.jsonl") == {"test": "val.jsonl"}
    assert held_out("sums-dev.jsonl") == {}


def test_what_is_named_is_told_where_it_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "two")
    Path("README.md").write_text(
        "---\nconfigs:\n- {config_name: a, data_files: a.csv}\n- {config_name: b, data_files: b.csv}\n---\n"
    )
    Path("a.csv").write_text("question,answer\na,b\n")
    Path("b.csv").write_text("question,answer,image\na,b,c\n")
    pictures = Features({"question": Value("string"), "answer": Value("string"), "image": Image()})
    rows = [{"question": "a", "answer": "b", "image": {"bytes": b"none", "path": None}}]
    Dataset.from_list(rows, features=pictures).to_parquet("pictures.parquet")
    for name, line in (
        ("", "'': the name of a file is empty. Name a file, a folder or a dataset of the hub."),
        ("x=", "'x=': the name of a file is empty. Name a file, a folder or a dataset of the hub."),
        (".", ".: has several configs, and none is named; it has a, b. Name one, as in .:CONFIG."),
        (".:c", ".: has no config 'c'; it has a, b. Name one, as in .:CONFIG."),
        (".:b", ".: it has pictures or sounds, and malora trains on text. Take these columns out."),
        (
            "pictures.parquet",
            "pictures.parquet: it has pictures or sounds, and malora trains on text. Take these columns out.",
        ),
        ("a.csv:main", "a.csv:main: file not found"),
    ):
        assert status("init", name, "--out", "new") == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"error: {line}"
    assert status("init", ".:a", "--out", "new") == 0
    assert list(load_named("new/recipe.yaml").recipe.mix.tasks) == ["two"]


def test_nothing_stays_where_no_step_can_be_measured(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from malora_cli.init import pace

    def fails(*_: object) -> None:
        raise RunError("memory does not suffice")

    monkeypatch.setattr(pace, "measured", fails)
    rows = "".join(f'{{"prompt": "say {n}", "completion": "{n}"}}\n' for n in range(400))
    (tmp_path / "counting.jsonl").write_text(rows)
    said = ["init", str(tmp_path / "counting.jsonl"), "--out", str(tmp_path), "--base", str(tiny_model)]
    with pytest.raises(SystemExit) as caught:
        main([*said, "--minutes", "1"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: memory does not suffice"
    assert [path.name for path in tmp_path.iterdir()] == ["counting.jsonl"]
