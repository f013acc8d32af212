"""Test rows that training gives away, and those that only look like it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from malora_cli.data.encoding import Encoder
from malora_cli.data.overlap import Overlap, _Words
from malora_cli.data.tasks import load_tasks
from train_runs import load, workplace

HAN = "天地玄黄宇宙洪荒日月盈昃辰宿列张"
THAI = "ประเทศไทยมีอากาศร้อน"
WORDS = [f"w{number}" for number in range(400)]


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return workplace(tmp_path, tiny_model)


def _overlap(place: Path, train: list[str], test: list[str]) -> Overlap:
    for split, texts in (("train", train), ("test", test)):
        rows = "".join(json.dumps({"question": text, "answer": "x"}) + "\n" for text in texts)
        (place.parent / f"add.{split}.jsonl").write_text(rows, encoding="utf-8")
    recipe = load(place).recipe
    encoder = Encoder(AutoTokenizer.from_pretrained(recipe.model.base))
    return {task.name: task for task in load_tasks(recipe.mix, encoder, max_length=4096)}["add"].overlap


def _text(start: int, count: int) -> str:
    return " ".join(WORDS[start : start + count])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ("1 + 1 =", "1 + 1 =", (1, 0)),
        ("1 + 1 =", "1 - 1 =", (0, 0)),
        ("Is  ice cold?", "is ice cold ", (1, 0)),
        (_text(0, 13), _text(0, 13), (1, 1)),
        (_text(0, 20), _text(7, 20), (0, 1)),  # 13 words in common
        (_text(0, 20), _text(8, 20), (0, 0)),  # 12
        (_text(0, 20).upper(), _text(5, 20), (0, 1)),
        ("北京" + HAN[:13], "上海" + HAN[:13], (0, 1)),  # of scripts without spaces, characters are words
        ("北京" + HAN[:12], "上海" + HAN[:12], (0, 0)),
        (f"see {HAN[:6]} and {HAN[6:11]} now", f"look: {HAN[:6]} and {HAN[6:11]} now", (0, 1)),
        ("ก" + THAI, "ข" + THAI, (0, 1)),
    ],
)
def test_what_counts(train: str, test: str, expected: tuple[int, int], place: Path) -> None:
    assert _overlap(place, ["other", train], [test, "none of it"]) == Overlap(*expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_wording_of_the_prompts_does_not_count(place: Path) -> None:
    """Twenty words that stand in every prompt, and the words at their seams, are no overlap."""
    wording = _text(0, 20)
    train = [f"{wording} the {_text(100 + number, 3)}" for number in range(20)]
    test = [f"{wording} the {_text(200 + number, 3)}" for number in range(20)]
    assert _overlap(place, train, test) == Overlap(0, 0)
    own = _text(300, 15)
    assert _overlap(place, [*train, f"{wording} the {own}"], [*test, f"{wording} the {own} more"]) == Overlap(0, 1)


@given(st.lists(st.text(alphabet="abc ", max_size=40), min_size=1, max_size=8))
def test_runs_are_those_of_a_slow_count(texts: list[str]) -> None:
    length = 3
    words = _Words.of(pa.array(texts))
    hashes, starts = words.runs(length)
    slow = [
        (number, tuple(split[at : at + length]))
        for number, split in enumerate((text.strip().split() or [""]) for text in texts)
        for at in range(len(split) - length + 1)
    ]
    assert words.text[starts].tolist() == [number for number, _ in slow]
    known: dict[tuple[str, ...], int] = {}
    for value, (_, run) in zip(hashes.tolist(), slow, strict=True):
        assert known.setdefault(run, value) == value
    assert len(set(known.values())) == len(known)
