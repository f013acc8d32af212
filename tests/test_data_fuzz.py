"""Hundreds of broken mixes, rows and files: each is used or refused in one line, and none ends in a traceback."""

from __future__ import annotations

import copy
import gzip
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from malora_cli.data.columns import RowReader
from malora_cli.data.encode_rows import Encoding
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats import FORMATS
from malora_cli.data.mixture import lay_out
from malora_cli.data.sources import load_rows
from malora_cli.data.tasks import load_tasks
from malora_cli.errors import MaloraError
from malora_cli.recipe import InvalidRecipeError, SourceSettings
from train_runs import load, workplace

MANY = settings(max_examples=150, suppress_health_check=list(HealthCheck))
#: Of what costs a whole mix each time.
FEWER = settings(MANY, max_examples=50)

TEXT = st.text(max_size=12)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(), TEXT)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one example, with the library's caches in it as well: thousands of files would pile up."""
    folder = Path(tempfile.mkdtemp())
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder / "hf"
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield folder
    finally:
        patch.undo()
        datasets.config.HF_DATASETS_CACHE = before
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def used_or_refused() -> Iterator[None]:
    """Whatever else is raised is a bug."""
    problems: tuple[str, ...] = ("none",)
    try:
        yield
    except InvalidRecipeError as error:
        problems = error.problems
    except MaloraError as error:
        problems = tuple(str(error).splitlines())
    assert problems
    assert all(problem and "\n" not in problem and "Traceback" not in problem for problem in problems)


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(tiny_model))


# ---------------------------------------------------------------- mixes

TASK_KEYS = ["domain", "train", "test", "holdout", "columns", "format", "metric", "system", "weight", "max_rows"]
TASK_KEYS += ["repeats", "too_long", "bad_rows", "max_new_tokens"]
WRONG = st.one_of(
    VALUES,
    st.sampled_from(
        [0, -1, 1e9, "", "nope", "drop", "split", "template", "alpaca", "add.test.jsonl", "*.jsonl", "$NO/x"]
    ),
    st.fixed_dictionaries({"path": st.sampled_from(["add.train.jsonl", "nope.jsonl", "*.jsonl", "."])}),
    st.fixed_dictionaries({"rows": st.integers(-1, 40)}),
    st.fixed_dictionaries({"share": st.floats(-0.5, 1.5), "stratify": st.sampled_from(["question", "nope"])}),
)


@st.composite
def broken_mixes(draw: st.DrawFn) -> list[tuple[tuple[str, ...], Any]]:
    """Up to three values put somewhere into a mix; a key of None takes one away."""
    keys = st.one_of(st.sampled_from(TASK_KEYS), TEXT)
    paths = st.one_of(
        st.tuples(st.sampled_from(["weighting", "temperature", "unit", "seed", "system", "tasks", "description", "x"])),
        st.tuples(st.just("tasks"), st.sampled_from(["add", "copy", "new", ".."])),
        st.tuples(st.just("tasks"), st.just("add"), keys),
        st.tuples(st.just("tasks"), st.just("add"), st.sampled_from(["train", "columns", "test"]), keys),
    )
    return draw(st.lists(st.tuples(paths, st.one_of(WRONG, st.just(...))), min_size=1, max_size=3))


def _put(mix: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    inner: Any = mix
    for key in path[:-1]:
        if not isinstance(inner, dict):
            return
        inner = inner.setdefault(key, {})
    if isinstance(inner, dict):
        if value is ...:
            inner.pop(path[-1], None)
        else:
            inner[path[-1]] = value


@FEWER
@given(changes=broken_mixes())
def test_broken_mixes(changes: list[tuple[tuple[str, ...], Any]], encoder: Encoder, tiny_model: Path) -> None:
    with scratch() as folder:
        recipe = workplace(folder, tiny_model)
        mix = json.loads((folder / "mix.yaml").read_text())
        for path, value in changes:
            _put(mix, path, copy.deepcopy(value))
        (folder / "mix.yaml").write_text(json.dumps(mix), encoding="utf-8")
        with used_or_refused():
            loaded = load(recipe).recipe
            lay_out(load_tasks(loaded.mix, encoder, max_length=512), loaded.mix, loaded.train)


# ---------------------------------------------------------------- rows


def _rows_of(name: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Rows with the columns of a format, and whatever in them."""
    form = FORMATS[name]
    message = st.dictionaries(
        st.sampled_from(["role", "content", "from", "value"]),
        SCALARS | st.sampled_from(["user", "assistant", "human", "gpt"]),
    )
    cells = VALUES | st.lists(message, max_size=4) | st.fixed_dictionaries({"text": VALUES, "label": VALUES})
    columns = ["a", "b"] if name == "template" else list(form.all_roles)
    row = st.fixed_dictionaries({}, optional=dict.fromkeys(columns, cells))
    return st.lists(row, min_size=1, max_size=4)


@MANY
@given(data=st.data(), name=st.sampled_from(sorted(FORMATS)), bad_rows=st.sampled_from(["error", "drop"]))
def test_broken_rows(data: st.DataObject, name: str, bad_rows: str, encoder: Encoder) -> None:
    rows = data.draw(_rows_of(name))
    columns = {"prompt": "{{ a }}", "completion": "{{ b.x }}"} if name == "template" else {}
    policy = data.draw(st.sampled_from(["error", "drop", "truncate_left", "truncate_right", "split"]))
    with scratch() as folder:
        (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with used_or_refused():
            found = load_rows(SourceSettings(path=str(folder / "x.jsonl")), split="train")
            reader = RowReader(name, FORMATS[name], columns, found.dataset.column_names, found.source)
            split = Encoding(reader, encoder, None, 64, policy, bad_rows).split(found)
            assert split.label_tokens > 0
            assert split.longest <= 64
            assert len({int(row) for row in split.rows["row"]}) + sum(u.rows for u in split.left_out) == split.read


# ---------------------------------------------------------------- files

CHUNKS = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b'{"prompt": "x", "completion": "y"}\n',
            b"prompt,completion\n",
            b"x,y\n",
            b"[",
            b"]",
            b"\xff\xfe",
            b'"',
            b"PAR1",
        ]
    ),
    st.just(gzip.compress(b'{"prompt": "x", "completion": "y"}\n', mtime=0)),
)
SUFFIXES = ["jsonl", "json", "csv", "tsv", "parquet", "arrow", "jsonl.gz", "csv.bz2", "json.xz", "txt"]


@MANY
@given(chunks=st.lists(CHUNKS, max_size=6), suffix=st.sampled_from(SUFFIXES), stream=st.sampled_from([None, 2]))
def test_broken_files(chunks: list[bytes], suffix: str, stream: int | None, encoder: Encoder) -> None:
    form = FORMATS["prompt-completion"]
    with scratch() as folder:
        (folder / f"x.{suffix}").write_bytes(b"".join(chunks))
        with used_or_refused():
            found = load_rows(SourceSettings(path=str(folder / f"x.{suffix}"), stream=stream), split="train")
            reader = RowReader("prompt-completion", form, {}, found.dataset.column_names, found.source)
            assert len(Encoding(reader, encoder, None, 64, "drop", "error").split(found)) > 0


NAMED = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
PATHS = st.lists(st.sampled_from(["*", "a", "b", "0"]), min_size=1, max_size=4).map(".".join)


@MANY
@given(values=st.lists(NAMED, min_size=1, max_size=3), paths=st.lists(PATHS, max_size=2), data=st.data())
def test_records_of_any_shape(values: list[Any], paths: list[str], data: st.DataObject) -> None:
    suffix, indent = data.draw(st.sampled_from(["json", "jsonl"])), data.draw(st.sampled_from([None, 1]))
    with scratch() as folder, used_or_refused():
        text = "\n".join(json.dumps(value, indent=indent) for value in values)
        (folder / f"x.{suffix}").write_text(text, encoding="utf-8")
        try:
            source = SourceSettings(path=str(folder / f"x.{suffix}"), records=tuple(paths) or None)
        except ValueError:  # two paths of one name
            return
        rows = load_rows(source, split="train")
        assert len(list(rows.dataset)) == len(rows.dataset) > 0
        assert all(
            1 <= rows.places.number(row) <= max(len(rows.dataset), text.count("\n") + 1)
            for row in range(len(rows.dataset))
        )


def test_a_huge_row_is_cut_or_left_out(encoder: Encoder) -> None:
    """A million characters in one row, as a broken export makes them."""
    form = FORMATS["prompt-completion"]
    huge = {"prompt": "word " * 200_000, "completion": "y"}
    with scratch() as folder:
        rows = [{"prompt": "x", "completion": "y"}, huge]
        (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        found = load_rows(SourceSettings(path=str(folder / "x.jsonl")), split="train")
        reader = RowReader("prompt-completion", form, {}, found.dataset.column_names, found.source)
        split = Encoding(reader, encoder, None, 64, "drop", "error").split(found)
        assert (len(split), split.too_long) == (1, 1)
        assert len(Encoding(reader, encoder, None, 64, "truncate_left", "error").split(found)) == 2
