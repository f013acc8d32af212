"""Which rows are kept for validation, and what becomes of the others."""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malora_cli.data.encoding import Encoder
from malora_cli.data.order import AllBut
from malora_cli.data.rows import Places
from malora_cli.data.splits import Split
from malora_cli.data.tasks import Task, load_tasks
from malora_cli.data.validation import kept_back
from malora_cli.errors import DataError
from malora_cli.recipe import ValidationSettings
from train_runs import load

_EACH = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _split(prompts: list[str], tokens: list[int] | None = None) -> Split:
    tokens = tokens or [10] * len(prompts)
    rows = {"row": range(len(prompts)), "prompt": prompts, "tokens": tokens, "label_tokens": [1] * len(prompts)}
    key = hashlib.sha256(json.dumps([prompts, tokens]).encode()).hexdigest()
    encoded = Dataset.from_dict({name: list(values) for name, values in rows.items()})
    return Split(encoded, "file", key, key, len(prompts), 10, 0, (), (), (0, 0), Places("file"))


def _kept(prompts: list[str], *, seed: int = 0, cut_at: int | None = None, **given: Any) -> list[str]:
    """The prompts of the rows that are kept, in the order of the rows."""
    tokens = given.pop("tokens", None)
    positions = kept_back(_split(prompts, tokens), ValidationSettings(**given), seed=seed, cut_at=cut_at)
    assert positions.tolist() == sorted(set(positions.tolist()))
    return [prompts[position] for position in positions]


def _prompts(count: int) -> list[str]:
    return [f"question {number}" for number in range(count)]


def _number(prompt: str, seed: int) -> float:
    """A prompt's number as the page says it."""
    text = " ".join(prompt.split()).casefold().encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, salt=seed.to_bytes(16)).digest()) / 2**64


def test_the_rows_are_those_whose_prompts_hash_is_low() -> None:
    prompts = _prompts(400)
    for seed in (0, 7):
        assert _kept(prompts, seed=seed) == [prompt for prompt in prompts if _number(prompt, seed) < 0.05]
    assert _kept(prompts, seed=0) != _kept(prompts, seed=7)


@_EACH
@given(st.integers(0, 2**32 - 1), st.integers(0, 10_000), st.floats(0.02, 0.9))
def test_neither_its_place_nor_another_row_decides_over_a_row(seed: int, chance: int, share: float) -> None:
    prompts = _prompts(300)
    kept = set(_kept(prompts, seed=seed, share=share, rows=10_000))
    some = random.Random(chance).sample(prompts, 200)
    lowest = min(map(_number, some, [seed] * 200))  # where none is below the share, the lowest is taken
    assert lowest >= share or set(_kept(some, seed=seed, share=share, rows=10_000)) == kept & set(some)


def test_repeated_prompts_stay_together() -> None:
    prompts = [f"Question {number % 100}" if number % 3 else f"question  {number % 100}\n" for number in range(500)]
    kept = _kept(prompts)
    assert len(kept) == 5 * len({" ".join(prompt.split()).lower() for prompt in kept}) > 0


def test_fewer_and_smaller_shares_are_a_part_of_more() -> None:
    prompts = _prompts(2000)
    few, more = _kept(prompts, rows=20), _kept(prompts, rows=60)
    assert (len(few), len(more)) == (20, 60)
    assert set(few) < set(more) < set(_kept(prompts, share=0.2))


@pytest.mark.parametrize(("rows", "kept"), [(1, 0), (4, 0), (5, 1), (8, 1), (30, 1)])
def test_a_small_task_spares_a_row_and_a_tiny_one_none(rows: int, kept: int) -> None:
    for seed in range(20):
        found = _kept(_prompts(rows), seed=seed)
        assert (kept if rows < 30 else 1) <= len(found) <= max(kept, rows // 5)
    assert all(1 <= len(_kept(_prompts(4), seed=seed, share=0.9)) <= 3 for seed in range(20)), "some row is left"


def test_a_prompt_of_more_rows_than_can_be_spared_is_left_to_training() -> None:
    for seed in range(20):
        assert _kept(["one"] * 50, seed=seed) == []
        kept = _kept(["one"] * 30 + _prompts(20), seed=seed)
        assert "one" not in kept
        assert kept


def test_prompts_with_a_row_that_was_cut_are_left_to_training() -> None:
    prompts = [f"question {number % 200}" for number in range(400)]
    tokens = [20 if number == 3 else 10 for number in range(400)]
    for seed in range(40):
        whole, uncut = (_kept(prompts, seed=seed, cut_at=cut, tokens=tokens) for cut in (None, 20))
        assert uncut == [prompt for prompt in whole if prompt != "question 3"]


@_EACH
@given(st.sets(st.integers(0, 60)), st.integers(1, 60))
def test_the_others_are_found_by_their_place(out: set[int], more: int) -> None:
    total = max(out, default=0) + more
    left = [number for number in range(total) if number not in out]
    assert AllBut(np.array(sorted(out), dtype=np.int64))(np.arange(len(left))).tolist() == left


# In a mix


def _tasks(place: Path, encoder: Encoder, *overrides: str, max_length: int = 512) -> tuple[dict[str, Task], list[str]]:
    recipe = load(place / "tiny.yaml", *overrides).recipe
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tasks = load_tasks(recipe.mix, encoder, max_length=max_length)
    return {task.name: task for task in tasks}, [str(one.message) for one in caught if one.category is UserWarning]


def _written(path: Path) -> list[str]:
    return [json.loads(line)["question"] for line in path.read_text().splitlines()]


def test_each_row_is_trained_on_or_kept_whatever_the_cap(place: Path, encoder: Encoder) -> None:
    found, said = _tasks(place, encoder)
    capped, _ = _tasks(place, encoder, "mix.tasks.add.max_rows=3", "mix.tasks.add.metric=last-number")
    assert said == []
    for name, task in found.items():
        train, kept = list(task.train.rows["prompt"]), list(task.validation.rows["prompt"])
        assert sorted(train + kept) == sorted(_written(place / f"{name}.train.jsonl"))
        assert 1 <= len(kept) == len(task.validation) <= len(train) / 4
        assert (task.train.unused, task.validation.unused) == ([], [])
        assert task.train.tokens == sum(task.train.rows["tokens"])
        assert task.train.label_tokens == sum(task.train.rows["label_tokens"])
    few = capped["add"]
    assert list(few.validation.rows["prompt"]) == list(found["add"].validation.rows["prompt"])
    assert (len(few.train), sum(rows.rows for rows in few.train.unused)) == (3, len(found["add"].train) - 3)
    assert not {*few.train.rows["prompt"]} & {*few.validation.rows["prompt"]}


def test_a_task_may_name_rows_of_its_own(place: Path, encoder: Encoder) -> None:
    rows = [{"q": f"{number}?", "a": str(number)} for number in range(3)]
    (place / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = f"mix.tasks.add.validation={{path: {place / 'own.jsonl'}, columns: {{prompt: q, completion: a}}}}"
    for mix, kept in (("mix.validation=null", 0), ("mix.validation={rows: 2}", 2)):
        found, said = _tasks(place, encoder, own, mix)
        assert said == []
        assert list(found["add"].validation.rows["prompt"]) == ["0?", "1?", "2?"]
        assert len(found["add"].train) == 30
        assert len(found["copy"].validation) in range(min(1, kept), kept + 1)


def test_validation_rows_are_scored_as_test_rows_are(place: Path, encoder: Encoder) -> None:
    """Of several right answers, the first is trained; the row is one row, and never cut."""
    rows = [{"question": "x" * (40 if n % 2 else 4) + str(n), "answer": [str(n), f"it is {n}"]} for n in range(100)]
    (place / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = [f"mix.tasks.add.{key}" for key in (f"train={place / 'long.jsonl'}", "references=all")]
    found, _ = _tasks(place, encoder, *task, "mix.tasks.add.too_long=truncate_left", max_length=60)
    add = found["add"]
    kept, trained = list(add.validation.rows["prompt"]), set(add.train.rows["prompt"])
    assert add.train.cut > 0
    assert len(set(kept)) == len(kept) > 0
    assert trained | set(kept) == {row["question"] for row in rows}
    assert not trained & set(kept)
    assert add.validation.left_out == ()
    assert all(len(right) == 2 for right in add.validation.rows["references"])
    assert max(map(len, kept)) <= 6, "no long one, of which a part was trained"


def test_it_is_told_where_a_task_can_spare_no_row(place: Path, encoder: Encoder) -> None:
    (place / "few.jsonl").write_text('{"question": "1", "answer": "1"}\n' * 9)
    few = f"mix.tasks.add.train={place / 'few.jsonl'}"
    found, said = _tasks(place, encoder, few)
    assert (len(found["add"].validation), len(found["add"].train)) == (0, 9)
    assert [line for line in said if "validation" in line] == [
        "task 'add': none of its 9 train rows can be spared for validation, so its loss is not measured while training "
        "(`validation: FILE` of the task names other rows)"
    ]
    found, said = _tasks(place, encoder, few, "mix.validation=null")
    assert not any("validation" in line for line in said)
    assert {len(task.validation) for task in found.values()} == {0}


def test_training_gives_away_no_test_row_that_it_keeps_for_validation(place: Path, encoder: Encoder) -> None:
    before, _ = _tasks(place, encoder)
    kept, trained = before["add"].validation.rows["prompt"][0], before["add"].train.rows["prompt"][0]
    for prompt, exact in ((kept, 0), (trained, 1)):
        (place / "add.test.jsonl").write_text(json.dumps({"question": prompt, "answer": "5"}) + "\n")
        found, _ = _tasks(place, encoder)
        assert found["add"].overlap.exact == exact


def test_a_missing_file_of_validation_rows_is_one_line(place: Path, encoder: Encoder) -> None:
    with pytest.raises(DataError, match=r"^task 'add': gone\.jsonl: file or folder not found"):
        _tasks(place, encoder, "mix.tasks.add.validation=gone.jsonl")
