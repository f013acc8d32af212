"""How often tasks are drawn, which rows they may use, and what ends the training."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from malora_cli.data.encoding import Encoder
from malora_cli.data.holdout import hold_out
from malora_cli.data.mixture import Mixture, lay_out
from malora_cli.data.order import MixtureOrder, Shuffle
from malora_cli.data.rows import Places, Rows
from malora_cli.data.tasks import Task, load_tasks
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings, TrainSettings
from train_runs import load, train_run, workplace

SIZES = {"copy": 18, "upper": 30, "add": 30}


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return workplace(tmp_path, tiny_model)


def tasks_of(place: Path, *overrides: str) -> dict[str, Task]:
    recipe = load(place, "mix.validation=null", *overrides).recipe
    encoder = Encoder(AutoTokenizer.from_pretrained(recipe.model.base))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {task.name: task for task in load_tasks(recipe.mix, encoder, max_length=recipe.train.max_length)}


def mixture_of(place: Path, *overrides: str, **train: Any) -> Mixture:
    tasks = list(tasks_of(place, *overrides).values())
    settings = TrainSettings(**{"batch_size": 1, "steps": 2400, **train})
    return lay_out(tasks, load(place, *overrides).recipe.mix, settings)


def drawn(mixture: Mixture) -> Counter[tuple[int, int]]:
    tasks, rows = mixture.order.at(np.arange(len(mixture)))
    return Counter(zip(tasks.tolist(), rows.tolist(), strict=True))


# ---------------------------------------------------------------- how often


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, [18 / 78, 30 / 78, 30 / 78]),
        (2.0, [18**0.5, 30**0.5, 30**0.5]),
        (1e9, [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_temperature_goes_from_proportional_to_uniform(temperature: float, expected: list[float], place: Path) -> None:
    mixture = mixture_of(place, "mix.weighting=temperature", f"mix.temperature={temperature}")
    assert list(mixture.share.values()) == pytest.approx([part / sum(expected) for part in expected])


@pytest.mark.parametrize("weighting", ["uniform", "temperature", "explicit", "proportional"])
def test_shares_of_label_tokens(weighting: str, place: Path) -> None:
    """The unit says what the weights are about: here each task's part of what the loss is taken over."""
    overrides = [f"mix.weighting={weighting}", "mix.unit=label_tokens"]
    overrides += ["mix.temperature=3"] if weighting == "temperature" else []
    overrides += [f"mix.tasks.{name}.weight={n}" for n, name in enumerate(SIZES, 1)] if weighting == "explicit" else []
    mixture = mixture_of(place, *overrides)
    labels = [task.train.label_tokens for task in mixture.tasks]
    expected = {
        "uniform": [1, 1, 1],
        "explicit": [1, 2, 3],
        "temperature": [count ** (1 / 3) for count in labels],
        "proportional": labels,
    }[weighting]
    assert list(mixture.label_share.values()) == pytest.approx([part / sum(expected) for part in expected])
    trained = Counter[int]()
    for example in mixture.__getitems__(range(len(mixture))):
        trained[example.task] += sum(last - first for first, last in example.spans)
    assert [trained[n] / trained.total() for n in range(3)] == pytest.approx(
        list(mixture.label_share.values()), abs=0.01
    )


def test_repeats_are_part_of_a_tasks_size(place: Path) -> None:
    mixture = mixture_of(place, "mix.weighting=proportional", "mix.tasks.copy.repeats=3")
    assert list(mixture.share.values()) == pytest.approx([54 / 114, 30 / 114, 30 / 114])


def test_passes_say_how_often_rows_come(place: Path) -> None:
    mixture = mixture_of(place, steps=540)
    assert mixture.passes == pytest.approx({"copy": 10.0, "upper": 6.0, "add": 6.0})
    times = [count for (task, _), count in drawn(mixture).items() if task == 0]
    assert (min(times), max(times)) == (10, 10)


# ---------------------------------------------------------------- which rows


def test_max_rows_are_chosen_once_and_for_all(place: Path) -> None:
    def chosen(*overrides: str, rows: int = 10) -> list[int]:
        split = tasks_of(place, f"mix.tasks.add.max_rows={rows}", *overrides)["add"].train
        assert len(split) == min(rows, 30)
        assert split.tokens == sum(split.lengths(np.arange(len(split))))
        spans = [example.spans[0] for example in split.examples(range(len(split)), 0)]
        assert split.label_tokens == sum(last - first for first, last in spans)
        return [int(row) for row in split.rows["row"]]

    first = chosen()
    assert chosen("train.seed=9", "mix.tasks.copy.max_rows=3", "mix.weighting=proportional") == first
    assert set(chosen(rows=5)) < set(first)  # a smaller cap keeps a part of the larger one's
    assert chosen("mix.seed=1") != first
    assert first != list(range(10))  # not simply the first rows
    assert chosen(rows=30) == chosen(rows=99) == list(range(30))


def test_what_is_beyond_the_cap_is_counted(place: Path) -> None:
    split = tasks_of(place, "mix.tasks.add.max_rows=10")["add"].train
    (beyond,) = split.unused
    assert (beyond.reason, beyond.rows, len(beyond.samples)) == ("beyond max_rows", 20, 5)
    assert not {number - 1 for number in beyond.samples} & set(split.rows["row"])


@pytest.mark.parametrize(("holdout", "held"), [("{rows: 7}", 7), ("{share: 0.1}", 3), ("{share: 0.001}", 1)])
def test_rows_that_are_held_out_are_not_trained_on(holdout: str, held: int, place: Path) -> None:
    overrides = ["mix.tasks.add.test=null", f"mix.tasks.add.holdout={holdout}"]
    task = tasks_of(place, *overrides)["add"]
    train, test = set(task.train.rows["prompt"]), set(task.test.rows["prompt"])
    assert (len(test), len(train), train & test) == (held, 30 - held, set())
    again = tasks_of(place, *overrides, "train.seed=5")["add"]
    assert set(again.test.rows["prompt"]) == test
    assert set(tasks_of(place, *overrides, "mix.seed=5")["add"].test.rows["prompt"]) != test


def test_strata_keep_their_proportions(place: Path) -> None:
    rows = [{"question": f"{n}?", "answer": "x", "kind": "rare" if n % 10 == 0 else "usual"} for n in range(100)]
    (place.parent / "kinds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ["mix.tasks.add.test=null", f"mix.tasks.add.train={place.parent / 'kinds.jsonl'}"]
    for count in (10, 20, 37):
        task = tasks_of(place, *overrides, f"mix.tasks.add.holdout={{rows: {count}, stratify: kind}}")["add"]
        rare = sum(int(prompt[:-1]) % 10 == 0 for prompt in task.test.rows["prompt"])
        assert abs(rare - count / 10) < 1
    with pytest.raises(DataError, match="column not found: 'kid' to stratify by; did you mean 'kind'"):
        tasks_of(place, *overrides, "mix.tasks.add.holdout={rows: 3, stratify: kid}")
    with pytest.raises(DataError, match="has 100 rows, so 100 cannot be held out"):
        tasks_of(place, *overrides, "mix.tasks.add.holdout={rows: 100}")


@pytest.mark.parametrize(("rows", "held"), [(30, 2), (1, None), (4000, 200), (5000, 200)])
def test_some_rows_are_held_out_where_nothing_is_said_of_them(rows: int, held: int | None) -> None:
    dataset = Dataset.from_dict({"q": list(range(rows))})
    whole = Rows(dataset, SourceSettings(path="x"), Places("x"))
    if held is None:
        with pytest.raises(DataError, match="x: has 1 row, so 1 cannot be held out"):
            hold_out(whole, None, 0)
        return
    train, test = hold_out(whole, None, 0)
    assert (len(train.dataset), len(test.dataset)) == (rows - held, held)
    assert sorted([*train.dataset["q"], *test.dataset["q"]]) == list(range(rows))
    assert test.dataset["q"] != hold_out(whole, None, 1)[1].dataset["q"]


def test_rows_of_one_group_stay_on_one_side(place: Path) -> None:
    rows = [{"question": f"{n % 10}?", "answer": f"{n}"} for n in range(95)]  # five groups of ten, five of nine
    (place.parent / "groups.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ["mix.tasks.add.test=null", f"mix.tasks.add.train={place.parent / 'groups.jsonl'}"]
    for count, held in ((9, {9}), (20, {18, 19, 20}), (94, {85, 86})):
        task = tasks_of(place, *overrides, f"mix.tasks.add.holdout={{rows: {count}, group: question}}")["add"]
        train, test = set(task.train.rows["prompt"]), set(task.test.rows["prompt"])
        assert not train & test
        assert len(task.test) in held
    with pytest.raises(DataError, match="the smallest group has 9 rows, more than the 8 to hold out"):
        tasks_of(place, *overrides, "mix.tasks.add.holdout={rows: 8, group: question}")
    with pytest.raises(DataError, match="column not found: 'questoin' to group by; did you mean 'question'"):
        tasks_of(place, *overrides, "mix.tasks.add.holdout={rows: 9, group: questoin}")


def _long(place: Path) -> list[str]:
    rows = [{"question": "q" * n, "answer": "a" * n} for n in (5, 10, 40)]
    (place.parent / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"mix.tasks.add.train={place.parent / 'long.jsonl'}", "train.max_length=80"]


@pytest.mark.parametrize(
    ("policy", "rows", "cut", "left_out"),
    [
        ("drop", [0, 1], 0, 1),
        ("truncate_right", [0, 1, 2], 1, 0),
        ("truncate_left", [0, 1, 2], 1, 0),
        ("split", [0, 1, 2, 2], 1, 0),
    ],
)
def test_long_rows_by_the_tasks_policy(policy: str, rows: list[int], cut: int, left_out: int, place: Path) -> None:
    split = tasks_of(place, *_long(place), f"mix.tasks.add.too_long={policy}")["add"].train
    assert split.rows["row"] == rows
    assert all(length <= 80 for length in split.lengths(np.arange(len(split))))
    assert all(example.spans for example in split.examples(range(len(split)), 0))
    assert (split.cut, sum(unused.rows for unused in split.left_out), split.read) == (cut, left_out, 3)


def test_a_policy_may_be_to_refuse(place: Path) -> None:
    with pytest.raises(DataError, match=r"row 3 has \d+ tokens, more than train.max_length 80"):
        tasks_of(place, *_long(place), "mix.tasks.add.too_long=error")


def test_bad_rows_can_be_left_out_and_are_named(place: Path) -> None:
    with (place.parent / "add.train.jsonl").open("a") as file:
        file.write('{"question": "x", "answer": ""}\n{"question": "x"}\n{"question": "y", "answer": " "}\n')
    split = tasks_of(place, "mix.tasks.add.bad_rows=drop")["add"].train
    assert len(split) == 30
    assert [(unused.rows, unused.samples) for unused in split.left_out] == [(2, [31, 33]), (1, [32])]
    assert split.read == 33


def test_a_source_may_have_its_own_format_and_columns(place: Path) -> None:
    rows = [{"instruction": "Add.", "q": f"{n}+1", "a": str(n + 1)} for n in range(3)]
    (place.parent / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"{{path: {place.parent / 'other.jsonl'}, format: alpaca, columns: {{input: q, output: a}}}}"
    task = tasks_of(place, f"mix.tasks.add.test={source}")["add"]
    assert task.test.rows[0]["prompt"] == "Add.\n\n0+1"
    assert task.train.rows[0]["prompt"] == "0+0="


# ---------------------------------------------------------------- what ends it


@st.composite
def orders(draw: st.DrawFn) -> tuple[MixtureOrder, list[int]]:
    rows = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    weights = draw(st.lists(st.floats(0.05, 5), min_size=len(rows), max_size=len(rows)))
    repeats = draw(st.lists(st.integers(1, 3), min_size=len(rows), max_size=len(rows)))
    wanted = [count * times for count, times in zip(rows, repeats, strict=True)]
    return MixtureOrder(rows, weights, draw(st.integers(0, 99))), wanted


@given(orders())
def test_where_the_first_and_the_last_task_are_exhausted(case: tuple[MixtureOrder, list[int]]) -> None:
    order, wanted = case
    first, last = order.until_first(wanted), order.until_all(wanted)
    counts = np.bincount(order.at(np.arange(first))[0], minlength=len(wanted))
    assert (counts <= wanted).all()
    more = np.bincount(order.at(np.arange(first + 1))[0], minlength=len(wanted))
    assert (more > wanted).any()
    counts = np.bincount(order.at(np.arange(last))[0], minlength=len(wanted))
    assert (counts >= wanted).all()
    fewer = np.bincount(order.at(np.arange(last - 1))[0], minlength=len(wanted))
    assert (fewer < wanted).any()


def test_proportional_until_all_are_exhausted_is_every_row_and_few_of_them_twice(place: Path) -> None:
    mixture = mixture_of(place, "mix.weighting=proportional", steps=None, stop="all_exhausted")
    assert 78 <= len(mixture) < 78 + mixture.order.first.block
    assert len(drawn(mixture)) == 78


def test_a_step_that_cannot_be_filled_is_refused(place: Path) -> None:
    with pytest.raises(DataError, match="exhausted before the first step of 400 rows"):
        mixture_of(place, steps=None, stop="first_exhausted", batch_size=400)


# ---------------------------------------------------------------- no order is stored


@given(st.integers(1, 5000), st.lists(st.integers(0, 2**63), min_size=1, max_size=4))
def test_a_shuffle_is_a_permutation(size: int, key: list[int]) -> None:
    assert sorted(Shuffle(size, key)(np.arange(size)).tolist()) == list(range(size))


def test_small_shuffles_are_uniform() -> None:
    """All 24 orders of 4, each within five standard deviations of what chance gives."""
    counts = Counter(tuple(Shuffle(4, [7, key])(np.arange(4)).tolist()) for key in range(12_000))
    assert len(counts) == 24
    assert all(abs(count - 500) < 5 * 500**0.5 for count in counts.values())


def test_a_shuffle_of_any_size_costs_the_same() -> None:
    huge = Shuffle(10**15, [1])
    found = huge(np.arange(1000))
    assert len(set(found.tolist())) == 1000
    assert found.max() < 10**15


def test_many_tasks_in_one_mixture() -> None:
    order = MixtureOrder([100] * 500, [1.0] * 500, 0)
    tasks, _ = order.at(np.arange(500 * 100))
    assert (np.bincount(tasks, minlength=500) == 100).all()


def test_a_task_of_weight_0_is_measured_and_never_drawn(tmp_path: Path, tiny_model: Path) -> None:
    weights = [f"mix.tasks.{name}.weight={int(name == 'add')}" for name in ("copy", "upper", "add")]
    weights += ["mix.weighting=explicit", "train.steps=null"]
    recipe = workplace(tmp_path / "work", tiny_model)
    record = train_run(recipe, *weights, "train.epochs=1")
    assert record.manifest.task_share == {"copy": 0, "upper": 0, "add": 1}
    rows = {name: data.rows for name, data in record.manifest.train_data.items()}
    assert record.manifest.steps == -(-rows["add"] // 6), "an epoch is of the rows that are drawn"
    assert {n for event in record.metrics.train() for n, loss in event.tasks.items() if loss.tokens} == {"add"}
    assert set(record.metrics.evals()[-1].tasks) == {"copy", "upper", "add"}
    ended = train_run(recipe, *weights, "train.stop=all_exhausted", "output.name=all")
    assert ended.manifest.steps == record.manifest.steps
