"""The tasks of a mix: what is warned of, what is refused, and what is encoded anew."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import CHATML, append_rows
from malora_cli.data import cache as cache_module
from malora_cli.data import encode_rows as encode_rows
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats._base import Example
from malora_cli.data.mixture import Mixture, lay_out
from malora_cli.data.overlap import Overlap
from malora_cli.data.tasks import Task, in_lots, load_tasks
from malora_cli.errors import DataError
from malora_cli.recipe import MixSettings, TrainSettings
from train_runs import load, rewrite


class CountingEncoder(Encoder):
    """Counts the examples it is asked to encode."""

    encoded = 0

    def rendered(self, example: Example, system: str | None = None, *, last: bool = False) -> Any:
        type(self).encoded += 1
        return super().rendered(example, system, last=last)


def _mix(place: Path, *overrides: str) -> MixSettings:
    """Its mix, which trains on all rows of the files."""
    return load(place / "tiny.yaml", "mix.validation=null", *overrides).recipe.mix


def _tasks(place: Path, encoder: Encoder, *overrides: str, max_length: int = 512) -> dict[str, Task]:
    return {task.name: task for task in load_tasks(_mix(place, *overrides), encoder, max_length=max_length)}


def _refusal(place: Path, encoder: Encoder, *overrides: str, max_length: int = 512) -> str:
    with pytest.raises(DataError) as caught:
        _tasks(place, encoder, *overrides, max_length=max_length)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_loaded_is_what_the_files_hold(place: Path, encoder: Encoder) -> None:
    task = _tasks(place, encoder)["add"]
    written = [json.loads(line) for line in (place / "add.train.jsonl").read_text().splitlines()]
    assert list(task.train.rows["prompt"]) == [row["question"] for row in written]
    assert [right for [right] in task.train.rows["references"]] == [row["answer"] for row in written]
    assert (len(task.train), len(task.test), task.train.too_long, task.overlap) == (30, 6, 0, Overlap(0, 0))


def test_tokens_are_counted(place: Path, encoder: Encoder) -> None:
    split = _tasks(place, encoder)["add"].train
    assert split.tokens == sum(len(ids) for ids in split.rows["input_ids"])
    # Single characters are single tokens here; each answer ends with one more.
    assert split.label_tokens == sum(len(answer) + 1 for [answer] in split.rows["references"])


def test_nothing_is_warned_of_where_all_is_well(place: Path, encoder: Encoder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _tasks(place, encoder)


def test_test_rows_that_are_training_rows_of_any_task_are_counted(place: Path, encoder: Encoder) -> None:
    known = [json.loads(line) for line in (place / "add.train.jsonl").read_text().splitlines()[:2]]
    append_rows(place / "copy.test.jsonl", *known)
    with pytest.warns(UserWarning, match="task 'copy': 2 of 8 test rows are also training rows") as caught:
        tasks = _tasks(place, encoder)
    assert {name: task.overlap.exact for name, task in tasks.items()} == {"copy": 2, "upper": 0, "add": 0}
    assert len(caught) == 1


def test_rows_that_are_too_long_are_left_out_and_counted(place: Path, encoder: Encoder) -> None:
    tasks = _tasks(place, encoder)
    whole, longest = tasks["copy"], max(len(ids) for task in tasks.values() for ids in task.train.rows["input_ids"])
    append_rows(place / "copy.train.jsonl", {"question": "x" * 300, "answer": "y"})
    append_rows(place / "copy.train.jsonl", {"question": "last", "answer": "z"})
    with pytest.warns(
        UserWarning, match=rf"task 'copy': 1 train row is left out: longer than {longest} tokens \(row 19\)"
    ):
        split = _tasks(place, encoder, max_length=longest)["copy"].train
    assert (len(split), split.too_long) == (len(whole.train) + 1, 1)
    assert split.rows[-1]["prompt"] == "last"
    assert split.tokens == sum(len(ids) for ids in split.rows["input_ids"])
    assert all(len(ids) <= longest for ids in split.rows["input_ids"])


def test_a_task_of_which_nothing_is_left_is_refused(place: Path, encoder: Encoder) -> None:
    with pytest.raises(DataError) as caught:
        _tasks(place, encoder, max_length=8)
    message, *others = str(caught.value).splitlines()
    assert message.startswith("task 'copy': ")
    assert message.endswith(
        "every row is longer than train.max_length 8 tokens. Raise it, or have training rows cut: the task's too_long "
        "may be truncate_left, truncate_right or split."
    )
    assert len(others) == 2


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "x"}, "row 19 has no 'answer'"),
        ({"question": "x", "answer": None}, "row 19 has no 'answer'"),
        ({"answer": "x"}, "row 19 has no 'question'"),
        ({"question": "x", "answer": ""}, "row 19 has an empty completion"),
        ({"question": "x", "answer": " \n"}, "row 19 has an empty completion"),
        ({"question": "x", "answer": []}, "row 19 has no 'answer'"),
        ({"question": "x", "answer": [{"a": 1}]}, "row 19 has no text as 'answer', but a dict"),
        (
            {"question": ["x", "y"], "answer": "x"},
            "row 19 has no text as 'question', but a list; `{{ question | join(', ') }}` makes one text of it",
        ),
        ({"question": {"k": 1}, "answer": "x"}, "row 19 has no text as 'question', but a dict"),
    ],
)
def test_a_row_that_cannot_be_learned_is_named(
    row: dict[str, Any], expected: str, place: Path, encoder: Encoder
) -> None:
    append_rows(place / "copy.train.jsonl", row)
    message = _refusal(place, encoder)
    assert message.startswith(f"task 'copy': {place / 'copy.train.jsonl'}: {expected}")
    assert message.endswith("Mend or remove the row, or set the task's bad_rows to drop.")


def test_a_row_without_a_supervised_token_is_named(place: Path, encoder: Encoder) -> None:
    encoder.tokenizer.chat_template, encoder.tokenizer.eos_token = None, None
    encoder.tokenizer.backend_tokenizer.pre_tokenizer = None  # bytes are no longer spelt out, so characters can lack
    append_rows(place / "copy.train.jsonl", {"question": "x", "answer": "\u4e00"})
    assert "row 19 has a completion of no token" in _refusal(place, encoder)


def test_not_a_number_counts_as_missing(place: Path, encoder: Encoder) -> None:
    pq.write_table(pa.table({"question": ["1", "2"], "answer": [2.0, float("nan")]}), place / "x.parquet")
    assert "row 2 has no 'answer'" in _refusal(place, encoder, f"mix.tasks.add.train={place / 'x.parquet'}")


def test_numbers_are_text(place: Path, encoder: Encoder) -> None:
    path = place / "numbers.jsonl"
    append_rows(
        path, {"question": "1+1", "answer": 2}, {"question": 2, "answer": 0.5}, {"question": "x", "answer": "two"}
    )
    split = _tasks(place, encoder, f"mix.tasks.add.train={path}")["add"].train
    assert list(zip(split.rows["prompt"], split.rows["references"], strict=True)) == [
        ("1+1", ["2"]),
        ("2", ["0.5"]),
        ("x", ["two"]),
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("mix.tasks.add.test=nope.jsonl",), "task 'add': nope.jsonl: file or folder not found"),
        (
            ("mix.tasks.add.columns.prompt=questoin",),
            "column not found: 'questoin' for 'prompt'; did you mean 'question'?",
        ),
        (("mix.tasks.add.columns={}",), "column not found: 'prompt' for 'prompt'; known: answer, question"),
        (
            ("mix.tasks.add.columns.answer=answer",),
            "format 'prompt-completion' has no role 'answer'. Its roles: prompt, completion, system, cluster.",
        ),
    ],
)
def test_a_wrong_source_or_column_is_told_with_its_task(
    overrides: tuple[str, ...], expected: str, place: Path, encoder: Encoder
) -> None:
    message = _refusal(place, encoder, *overrides)
    assert message.startswith("task 'add': ")
    assert expected in message


def test_a_row_that_a_template_refuses_is_told_by_its_number_or_left_out(place: Path, encoder: Encoder) -> None:
    refusing = "{% for m in messages %}{% if m.content == 'copy bil' %}{{ raise_exception('not bil') }}{% endif %}"
    encoder.tokenizer.chat_template = refusing + "{% endfor %}" + CHATML
    assert _refusal(place, encoder) == (
        f"task 'copy': {place / 'copy.train.jsonl'}: row 9 has a conversation that the model's chat template refuses "
        "(not bil). Mend or remove the row, or set the task's bad_rows to drop."
    )
    with pytest.warns(UserWarning, match="1 train row is left out: a conversation that the model's chat template"):
        assert len(_tasks(place, encoder, "mix.tasks.copy.bad_rows=drop")["copy"].train) == 17


def test_a_tasks_own_system_prompt_goes_before_the_mixs(place: Path, encoder: Encoder) -> None:
    tasks = _tasks(place, encoder, "mix.system=all", "mix.tasks.add.system=own", 'mix.tasks.copy.system=""')
    starts = {name: encoder.tokenizer.decode(task.train.rows[0]["input_ids"]) for name, task in tasks.items()}
    assert starts["upper"].startswith("<|im_start|>system\nall<|im_end|>")
    assert starts["add"].startswith("<|im_start|>system\nown<|im_end|>")
    assert starts["copy"].startswith("<|im_start|>system\n<|im_end|>")


def _encoded(place: Path, encoder: Encoder, *overrides: str) -> int:
    """Rows that were encoded to load the mix."""
    CountingEncoder.encoded = 0
    _tasks(place, CountingEncoder(encoder.tokenizer), *overrides)
    return CountingEncoder.encoded


def _mixture(tasks: list[Task], mix: MixSettings, **train: Any) -> Mixture:
    return lay_out(tasks, mix, TrainSettings(batch_size=1, **train))


def _explicit(weight: float) -> list[str]:
    return ["mix.weighting=explicit", *(f"mix.tasks.{name}.weight={weight}" for name in ("copy", "upper", "add"))]


def test_nothing_is_encoded_twice(place: Path, encoder: Encoder) -> None:
    assert _encoded(place, encoder) == 18 + 30 + 30 + 3 * 6
    assert _encoded(place, encoder) == 0
    assert _encoded(place, encoder, "mix.weighting=proportional", "train.seed=5", *_explicit(3.0)) == 0
    assert _encoded(place, encoder, "mix.tasks.add.max_new_tokens=7", "mix.tasks.add.domain=other") == 0


def test_several_processes_encode_the_same(place: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    append_rows(
        place / "add.train.jsonl", *({"question": f"{n}", "answer": "" if n % 3 == 0 else "x"} for n in range(50))
    )
    drop = ("mix.tasks.add.bad_rows=drop",)
    alone = _tasks(place, encoder, *drop)["add"].train
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "another cache"))
    monkeypatch.setattr(encode_rows, "_ROWS_A_PROCESS", 20)
    assert (encode_rows.processes_for(80), encode_rows.processes_for(39)) == (2, None)
    together = _tasks(place, encoder, *drop)["add"].train
    assert (together.sha256, together.left_out) == (alone.sha256, alone.left_out)
    assert together.rows.to_list() == alone.rows.to_list()
    assert len(together.encoded.cache_files) == 2


def test_what_decides_the_tokens_is_encoded_anew(
    place: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _encoded(place, encoder)
    assert _encoded(place, encoder, "mix.tasks.add.system=Add.") == 36
    assert _encoded(place, encoder, "mix.tasks.add.columns={prompt: answer, completion: answer}") == 36
    append_rows(place / "add.train.jsonl", {"question": "9+9=", "answer": "18"})
    assert _encoded(place, encoder) == 31
    monkeypatch.setattr(cache_module, "_VERSION", -1)
    assert _encoded(place, encoder) == 97
    monkeypatch.undo()
    encoder.tokenizer.chat_template += "{# another #}"
    assert _encoded(place, encoder) == 97


def test_a_saved_dataset_of_the_users_is_left_as_it_is(place: Path, encoder: Encoder) -> None:
    from datasets import Dataset

    Dataset.from_list([{"question": "a", "answer": "b"}]).save_to_disk(str(place / "saved"))
    before = sorted(place.rglob("saved/*"))
    override = f"mix.tasks.add.train={place / 'saved'}"
    assert len(_tasks(place, encoder, override)["add"].train) == 1
    assert sorted(place.rglob("saved/*")) == before
    assert _encoded(place, encoder, override) == 0


def test_a_cache_that_cannot_be_written_is_one_line(
    place: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "file"))
    assert "or set XDG_CACHE_HOME to another folder." in _refusal(place, encoder)


def test_the_hash_is_that_of_the_tokens(place: Path, encoder: Encoder, tmp_path: Path) -> None:
    def hashes(*overrides: str, max_length: int = 512) -> list[str]:
        tasks = _tasks(place, encoder, *overrides, max_length=max_length)
        return [split.sha256 for task in tasks.values() for split in (task.train, task.test)]

    first = hashes()
    assert hashes("train.seed=3", "mix.weighting=proportional") == first
    assert len(set(first)) == 6
    copy = tmp_path / "elsewhere.csv"  # the same text in another place and format
    rows = [json.loads(line) for line in (place / "add.train.jsonl").read_text().splitlines()]
    copy.write_text("question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in rows))
    assert hashes(f"mix.tasks.add.train={copy}") == first
    assert hashes("mix.system=Hi") != first
    rewritten = (place / "add.train.jsonl").read_text().splitlines()
    (place / "add.train.jsonl").write_text("\n".join(rewritten[::-1]) + "\n")
    assert hashes()[4] != first[4]
    assert hashes()[:4] == first[:4]


def test_the_hash_does_not_depend_on_lots(place: Path, encoder: Encoder) -> None:
    rows = _tasks(place, encoder)["add"].train.rows
    apart = [encode_rows._sha256(rows.select(range(*ends))) for ends in ((0, 15), (15, 30), (0, 30))]
    assert len(set(apart)) == 3
    assert encode_rows._sha256(rows.select(list(range(30)))) == encode_rows._sha256(rows) == apart[2]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], [1 / 3, 1 / 3, 1 / 3]),
        (["mix.weighting=proportional"], [18 / 78, 30 / 78, 30 / 78]),
        ([*_explicit(1.0), "mix.tasks.add.weight=2"], [0.25, 0.25, 0.5]),
    ],
)
def test_shares(overrides: list[str], expected: list[float], place: Path, encoder: Encoder) -> None:
    mix = _mix(place, *overrides)
    mixture = _mixture(load_tasks(mix, encoder, max_length=512), mix, steps=2400)
    assert list(mixture.share.values()) == pytest.approx(expected)
    drawn = np.bincount([mixture.order.first[position][0] for position in range(2400)], minlength=3)
    assert np.abs(drawn / 2400 - expected).max() < mixture.order.first.block / 2400
    assert len(mixture) == 2400


def test_the_mixture_gives_the_rows_of_its_tasks(place: Path, encoder: Encoder) -> None:
    mix = _mix(place)
    tasks = load_tasks(mix, encoder, max_length=512)
    mixture = _mixture(tasks, mix, steps=90, seed=1)
    for position in range(90):
        task, row = mixture.order.first[position]
        example, expected = mixture[position], tasks[task].train.rows[row]
        assert (example.input_ids, example.spans) == (expected["input_ids"], [tuple(expected["spans"])])
        assert example.task == task


def test_a_task_that_is_all_but_never_drawn_is_refused(place: Path, encoder: Encoder) -> None:
    mix = _mix(place, *_explicit(1.0), "mix.tasks.upper.weight=1e-9")
    tasks = load_tasks(mix, encoder, max_length=512)
    with pytest.raises(DataError, match=r"task 'upper': it is drawn once in 2,0.* rows, too rarely to be learned"):
        _mixture(tasks, mix, steps=10)


@pytest.mark.parametrize(
    ("limit", "size", "expected"), [(None, 4, [4, 2]), (5, 4, [4, 1]), (99, 3, [3, 3]), (1, 8, [1])]
)
def test_lots(limit: int | None, size: int, expected: list[int], place: Path, encoder: Encoder) -> None:
    split = _tasks(place, encoder)["add"].test
    lots = list(in_lots(split, 2, limit=limit, size=size))
    assert [len(lot) for lot in lots] == expected
    together = list(chain.from_iterable(lots))
    assert [example.input_ids for example in together] == split.rows.select(split.sample(limit))["input_ids"]
    assert {example.task for example in together} == {2}


def test_a_sample_is_the_same_for_every_run_and_a_part_of_a_larger_one(place: Path, encoder: Encoder) -> None:
    """It is of all of a sorted file, not of its head; and another one for another seed or task."""
    rows = [{"question": f"{number:03}", "answer": str(number)} for number in range(300)]
    for name in ("add", "copy"):
        (place / f"{name}.train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def samples(*overrides: str) -> dict[str, list[int]]:
        tasks = load_tasks(_mix(place, *overrides), encoder, max_length=512)
        return {task.name: list(task.train.sample(60)) for task in tasks}

    first, split = samples(), _tasks(place, encoder)["add"].train
    assert first == samples()
    assert first["add"] != first["copy"]
    assert first["add"] != samples("mix.seed=1")["add"]
    assert first["add"] == sorted(set(first["add"]))
    for third in range(3):
        assert 10 < sum(number // 100 == third for number in first["add"]) < 30
    for few, more in pairwise((1, 4, 16, 60, 300)):
        assert set(split.sample(few)) < set(split.sample(more))
    assert list(split.sample(None)) == list(split.sample(1000)) == list(range(300))
    capped = split.capped(100)
    assert max(capped.sample(50)) < 100
    shown = [reference for [reference] in capped.rows.select(capped.sample(50))["references"]]
    assert len(set(shown)) == 50


def test_tasks_of_one_file_stand_in_the_order_of_the_mix(place: Path, encoder: Encoder) -> None:
    def turn(mix: dict[str, Any]) -> None:
        mix["tasks"] = dict(reversed(mix["tasks"].items()))

    reorder: Callable[[Any], None] = turn
    rewrite(place / "mix.yaml", reorder)
    assert list(_tasks(place, encoder)) == ["add", "upper", "copy"]
