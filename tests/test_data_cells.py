"""Cells that are null, whole, or of a class: what of them reaches a prompt and an answer."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from malora_cli.data.class_name import ClassName
from malora_cli.data.columns import RowReader
from malora_cli.data.formats import FORMATS
from malora_cli.data.formats._base import Example, RowError
from malora_cli.data.sources import load_rows
from malora_cli.data.typed import column_notes
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings

NULLS = {"x": None, "y": "text", "blank": " ", "tags": ["a", None, "b"], "meta": {"deep": None}}


def read(row: dict[str, Any], columns: dict[str, Any], name: str = "template") -> Example:
    return RowReader(name, FORMATS[name], columns, list(row), "rows.jsonl")(row)


def examples(path: Path, columns: dict[str, Any], name: str = "prompt-completion", **source: Any) -> list[Example]:
    rows = load_rows(SourceSettings(path=str(path), **source), split="train")
    reader = RowReader(name, FORMATS[name], columns, rows.dataset.column_names, rows.source)
    return [reader(row) for row in rows.used(reader.used)]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ x }}", ""),
        ("{{ x | trim }}", ""),
        ("{{ x | upper }}", ""),
        ("{{ x.strip() }}", ""),
        ("{{ x.split(',')[0] }}", ""),
        ("{{ x.field }}", ""),
        ("{{ x['field'] }}", ""),
        ("{{ x ~ y }}", "text"),
        ("{{ '%s' % x }}", ""),
        ("{{ '{}'.format(x) }}", ""),
        ("{{ x | default('-') }}", "-"),
        ("{{ x | default('-', true) }}", "-"),
        ("{{ x or '-' }}", "-"),
        ("{% if x %}{{ x }}{% else %}-{% endif %}", "-"),
        ("{{ '-' if x is none else x }}", "-"),
        ("{{ '-' if x == none else x }}", "-"),
        ("{{ '-' if x is not none else '+' }}", "+"),
        ("{% if x != '' %}{{ x }}{% else %}-{% endif %}", "-"),
        ("{{ x | replace('a', 'b') }}{{ x | title }}{{ x | truncate(9) }}{{ '%s' | format(x) }}{{ x | e }}", ""),
        ("{% for item in x %}{{ item }}{% endfor %}", ""),
        ("{{ x | length }}", "0"),
        ("{{ x | tojson }}", "null"),
        ("{{ meta.deep }}", ""),
        ("{{ meta.deep | trim }}", ""),
        ("{{ meta.get('deep') ~ meta.get('other') }}", ""),
        ("{{ meta | tojson }}", '{"deep": null}'),
        ("{{ meta }}", "{'deep': null}"),
        ("{{ tags | join(', ') }}", "a, b"),
        ("{{ tags | join }}", "ab"),
        ("{% for tag in tags %}<{{ tag }}>{% endfor %}", "<a><><b>"),
        ("{{ tags | tojson }}", '["a", null, "b"]'),
    ],
)
def test_null_is_nothing_in_a_template(template: str, expected: str) -> None:
    assert read(NULLS, {"prompt": f"{template}|{{{{ y }}}}", "completion": "{{ y }}"}).prompt == f"{expected}|text"


def test_nan_is_null() -> None:
    row = {"x": float("nan"), "y": "text", "tags": ["a", np.nan]}
    columns = {"prompt": "{{ x }}{{ x | trim }}{{ tags | join('+') }}", "completion": "{{ y }}"}
    assert read(row, columns).prompt == "a"
    with pytest.raises(RowError, match=r"^no 'completion': all cells of its template are empty"):
        read(row, {"prompt": "{{ y }}", "completion": "{{ x }}"})


@pytest.mark.parametrize("template", ["{{ x + 1 }}", "{{ x | int }}", "{{ 'a' + x }}", "{{ x > 1 }}"])
def test_nothing_is_reckoned_from_null(template: str) -> None:
    with pytest.raises(RowError, match=r"the template of 'prompt' cannot take \(a null cell"):
        read(NULLS, {"prompt": template, "completion": "{{ y }}"})


@pytest.mark.parametrize(
    "template",
    [
        "{{ x }}",
        "{{ x | trim }}",
        "The answer is {{ x }}.",
        "The answer is {{ blank }}{{ x }}.",
        "{{ 'yes' if x else 'no' }}",
        "{% if x %}yes{% else %}no{% endif %}",
        "The answer is {{ meta.deep }}.",
        "{{ meta.deep }}",
    ],
)
def test_an_answer_of_nulls_is_none(template: str) -> None:
    with pytest.raises(RowError, match=r"^no 'completion': all cells of its template are empty"):
        read(NULLS, {"prompt": "{{ y }}", "completion": template})


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ x or 'none' }}", "none"),
        ("{{ x | default('none') }}", "none"),
        ("{{ (blank | trim) or 'none' }}", "none"),
        ("{% if x is none %}none{% else %}{{ x }}{% endif %}", "none"),
        ("{{ x }}{{ y }}", "text"),
    ],
)
def test_an_answer_may_say_what_null_is(template: str, expected: str) -> None:
    assert read(NULLS, {"prompt": "{{ y }}", "completion": template}).completion == expected


def test_a_system_prompt_of_nulls_is_left_out() -> None:
    for system in ("About {{ x }}:", "About {{ blank }}:", "About {{ meta.deep }}:", "x"):
        columns = {"prompt": "y", "completion": "y", "system": system}
        assert [turn.role for turn in read(NULLS, columns).turns] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("cell", "template", "expected"),
    [
        ("18.0", "{{ x | int }}", "18"),
        (18.7, "{{ x | int }}", "18"),
        ("0x12", "{{ x | int(base=16) }}", "18"),
        ("1,234", "{{ x | int(0) }}", "0"),
        ("1.50", "{{ x | float }}", "1.5"),
        ("1,234", "{{ x | int }}", None),
        ("n/a", "{{ x | float }}", None),
        ([18], "{{ x | int }}", None),
    ],
)
def test_no_number_is_made_of_what_is_none(cell: Any, template: str, expected: str | None) -> None:
    columns = {"prompt": "{{ x }}", "completion": template}
    if expected is not None:
        assert read({"x": cell}, columns).completion == expected
        return
    with pytest.raises(RowError, match=r"the template of 'completion' cannot take \(.* is not a number\)"):
        read({"x": cell}, columns)


def test_tojson_is_for_models_and_not_for_web_pages() -> None:
    row = {"x": {"b": "ä & <b>", "a": 1}}
    assert read(row, {"prompt": "{{ x | tojson }}", "completion": "{{ x.a }}"}).prompt == '{"b": "ä & <b>", "a": 1}'


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_whole_numbers_of_a_table_are_written_whole(tmp_path: Path, kind: type) -> None:
    frame = pd.DataFrame({"q": ["a", "b", "c"], "n": np.array([18, 51.1, np.nan], dtype=kind)})
    frame.to_parquet(tmp_path / "rows.parquet")
    columns = {"prompt": "{{ q }} {{ n }} {{ n | default(0) | int + 1 }}", "completion": "n"}
    rows = load_rows(SourceSettings(path=str(tmp_path / "rows.parquet")), split="train")
    reader = RowReader("prompt-completion", FORMATS["prompt-completion"], columns, rows.dataset.column_names, "x")
    first, second = reader(rows.dataset[0]), reader(rows.dataset[1])
    assert (first.prompt, first.completion) == ("a 18 19", "18")
    assert (second.prompt, second.completion) == ("b 51.1 52", "51.1")
    with pytest.raises(RowError, match=r"^no 'n'$"):
        reader(rows.dataset[2])


def test_numbers_within_cells_are_whole_too(tmp_path: Path) -> None:
    rows = [{"q": "a", "n": [{"v": 1.0}, {"v": 2.5}, {"v": 1e300}]}]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    columns = {"prompt": "{{ n | map(attribute='v') | join(' ') }} {{ n[0] | tojson }}", "completion": "n.0.v"}
    (example,) = examples(tmp_path / "rows.parquet", columns)
    assert (example.prompt, example.completion) == ('1 2.5 1e+300 {"v": 1}', "1")


CLASSES = Features(
    {"q": Value("string"), "label": ClassLabel(names=["bad", "good"]), "tags": List(ClassLabel(names=["x", "y"]))}
)


CARD = """---
dataset_info:
  features:
  - {name: q, dtype: string}
  - {name: label, dtype: {class_label: {names: {"0": bad, "1": good}}}}
  - {name: tags, list: {class_label: {names: {"0": x, "1": y}}}}
---
"""


def classed(folder: Path) -> Dataset:
    rows = {"q": ["a", "b"], "label": [1, -1], "tags": [[0, 1], []]}
    dataset = Dataset.from_dict(rows, features=CLASSES)
    dataset.to_parquet(folder / "rows.parquet")
    dataset.save_to_disk(str(folder / "saved"))
    (folder / "card").mkdir()
    pd.DataFrame(rows).to_parquet(folder / "card" / "train.parquet")
    (folder / "card" / "README.md").write_text(CARD)
    return dataset


@pytest.mark.parametrize(
    ("path", "source"),
    [("rows.parquet", {}), ("rows.parquet", {"stream": 2}), ("saved", {}), ("card", {}), ("card", {"stream": 2})],
)
def test_a_class_is_its_name(tmp_path: Path, path: str, source: dict[str, Any]) -> None:
    classed(tmp_path)
    rows = load_rows(SourceSettings(path=str(tmp_path / path), **source), split="train")
    columns = {"prompt": "{{ q }} {{ label }} {{ label.number }} {{ tags | join(',') }}", "completion": "label"}
    reader = RowReader("prompt-completion", FORMATS["prompt-completion"], columns, rows.dataset.column_names, "x")
    example = reader(rows.dataset[0])
    assert (example.prompt, example.completion) == ("a good 1 x,y", "good")
    with pytest.raises(RowError, match=r"^no 'label'$"):  # the class is not told
        reader(rows.dataset[1])
    columns = {"prompt": "q", "completion": "label.number"}
    reader = RowReader("prompt-completion", FORMATS["prompt-completion"], columns, rows.dataset.column_names, "x")
    assert reader(rows.dataset[0]).completion == "1"


def test_other_names_of_classes_are_other_content(tmp_path: Path) -> None:
    dataset = classed(tmp_path)
    renamed = dataset.cast_column("label", ClassLabel(names=["neg", "pos"]))
    renamed.to_parquet(tmp_path / "renamed.parquet")
    one, other = (
        load_rows(SourceSettings(path=str(tmp_path / name)), split="train")
        for name in ("rows.parquet", "renamed.parquet")
    )
    assert one.sha256(["label"]) != other.sha256(["label"])
    assert one.sha256(["q"]) == other.sha256(["q"])


def test_what_is_to_be_known_of_columns() -> None:
    features = Features({**CLASSES, "page": Image(), "pages": List(Image())})
    assert column_notes(features, ["q", "label"]) == (
        "label: names of 2 classes (label.number is the number)",
        "page: pictures, which no role is given, so rows are trained without",
        "pages: pictures, which no role is given, so rows are trained without",
    )


def test_a_class_travels_to_other_processes() -> None:
    sent = pickle.loads(pickle.dumps(ClassName("good", 1)))
    assert (sent, sent.number, type(sent)) == ("good", 1, ClassName)


def test_pictures_are_no_text(tmp_path: Path) -> None:
    features = Features({"q": Value("string"), "pages": List(Image()), "a": Value("string")})
    Dataset.from_dict({"q": ["x"], "pages": [[]], "a": ["y"]}, features=features).to_parquet(tmp_path / "rows.parquet")
    columns = {"prompt": "q", "completion": "a"}
    assert examples(tmp_path / "rows.parquet", columns)[0].completion == "y"
    with pytest.raises(DataError, match=r"rows.parquet: the column 'pages' holds pictures, which is not text"):
        examples(tmp_path / "rows.parquet", {**columns, "prompt": "{{ q }} {{ pages[0] }}"})


ANSWERS = {
    "q": "Who?",
    "answers": {"text": ["Ada", "", "Ada", None, "Lovelace"], "answer_start": [1, 2]},
    "spans": [{"text": "Ada"}, {"text": "Lovelace"}],
    "instances": [{"output": "first"}, {"output": "second"}],
    "one": "Ada",
    "two": None,
    "three": ["Lovelace", 3],
    "deep": [["Ada"]],
}


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("one", ("Ada",)),
        ("answers.text", ("Ada", "Lovelace")),
        ("answers.text.0", ("Ada",)),
        ("spans.text", ("Ada", "Lovelace")),
        ("spans.1.text", ("Lovelace",)),
        ("instances.0.output", ("first",)),
        ("instances.-1.output", ("second",)),
        (("one", "two", "three"), ("Ada", "Lovelace", "3")),
        (("{{ one | upper }}", "spans.1.text"), ("ADA", "Lovelace")),
        ("{{ answers.text | select | unique | list }}", ("Ada", "Lovelace")),
        ("{{ three | join(', ') }}", ("Lovelace, 3",)),
    ],
)
def test_any_answer_of_a_list_is_right(completion: Any, expected: tuple[str, ...]) -> None:
    assert read(ANSWERS, {"prompt": "q", "completion": completion}, "prompt-completion").references == expected
    columns = {"instruction": "q", "output": completion}
    assert read(ANSWERS, columns, "alpaca").references == expected


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"completion": "answers.text.9"}, "no 'answers.text.9'"),
        ({"completion": "answers.text.-9"}, "no 'answers.text.-9'"),
        ({"completion": "one.text"}, "no 'one.text'"),
        ({"completion": "two.text"}, "no 'two.text'"),
        ({"completion": "deep"}, "no text as 'deep', but a list"),
        ({"completion": "spans"}, "no text as 'spans', but a dict"),
        ({"prompt": "answers"}, "no text as 'answers', but a dict; `{{ answers | tojson }}` makes one text of it"),
        (
            {"completion": "one", "prompt": "spans.text"},
            "no text as 'spans.text', but a list; `{{ spans | map(attribute='text') | join(', ') }}` makes one text of "
            "it, `records: spans.*` a row of each item",
        ),
    ],
)
def test_a_path_that_leads_to_no_text(columns: dict[str, Any], expected: str) -> None:
    with pytest.raises(RowError) as caught:
        read(ANSWERS, {"prompt": "q", "completion": "one", **columns}, "prompt-completion")
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        ("prompt-completion", {"prompt": "{{ q }} ({{ one }})", "completion": "one"}, "Who? (Ada)"),
        ("alpaca", {"instruction": "{{ q }}", "input": "{% if two %}{{ two }}{% endif %}", "output": "one"}, "Who?"),
        ("alpaca", {"instruction": "q", "input": "As {{ two }}:", "output": "one"}, "Who?"),
        ("template", {"prompt": "q", "completion": "one"}, "Who?"),
    ],
)
def test_templates_and_columns_stand_side_by_side(name: str, columns: dict[str, Any], expected: str) -> None:
    example = read(ANSWERS, columns, name)
    assert (example.prompt, example.completion) == (expected, "Ada")


def test_a_template_for_a_list_finds_the_list() -> None:
    row = {"turns": [["user", "2 + 3?"], ["assistant", "5"]]}
    template = "{{ turns }}"
    with pytest.raises(RowError, match="no list of messages"):
        read(row, {"messages": template}, "messages")
    row = {"turns": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}, {"role": "user"}]}
    assert read(row, {"messages": "{{ turns[:2] }}"}, "messages").completion == "5"


ODD = {"0": "zero", "Question Text": "Why?", "a.b": None, "list": '["x", {"n": 1.50}]', "y": "text"}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ row['0'] }} {{ row['Question Text'] }}{{ row['a.b'] }} {{ row.y }} {{ y }}", "zero Why? text text"),
        ("{% for row in [1, 2] %}{{ row }}{% endfor %}{{ y }}", "12text"),
        ("{{ (list | fromjson)[1].n }}", "1.50"),
        ("{{ list | fromjson | first }}", "x"),
        ("{{ row['a.b'] | fromjson }}{{ y }}", "text"),
    ],
)
def test_columns_that_are_no_names_and_cells_that_are_json(template: str, expected: str) -> None:
    assert read(ODD, {"prompt": template, "completion": "{{ row['0'] }}"}).prompt == expected
    assert RowReader(
        "template", FORMATS["template"], {"prompt": template, "completion": "{{ row['0'] }}"}, ODD, ""
    ).used


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ Question Text }}", "Write {{ row['0'] }} for the column '0'."),
        ("{{ 0 }}", "Write {{ row['0'] }} for the column '0'."),
        ("{{ row['nought'] }}", "names the column 'nought', which is not there"),
        ("{{ row | tojson }}", "'row' for something other than one column. Write a column as row['NAME']."),
        ("{{ row[0] }}", "'row' for something other than one column"),
        ("{{ row['0'] }}{{ row }}", "'row' for something other than one column"),
    ],
)
def test_a_template_that_names_no_column_is_told_how(template: str, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        read(ODD, {"prompt": template, "completion": "y"}, "prompt-completion")
    assert expected in str(caught.value)


def test_a_column_called_row_is_a_column() -> None:
    assert read({"row": "r", "y": "t"}, {"prompt": "{{ row }} {{ row[0] }}", "completion": "{{ y }}"}).prompt == "r r"


def test_text_that_is_not_json_is_a_bad_row() -> None:
    with pytest.raises(RowError, match=r"the template of 'prompt' cannot take \(Expecting value: line 1"):
        read(ODD, {"prompt": "{{ y | fromjson }}", "completion": "{{ y }}"})


def test_several_columns_without_an_answer_are_all_named() -> None:
    with pytest.raises(RowError, match=r"^no 'a' or 'b'$"):
        read({"q": "?", "a": None, "b": None}, {"prompt": "q", "completion": ["a", "b"]}, "prompt-completion")


def test_bytes_of_a_table_are_text_where_they_can_be(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    cells = {"q": [b"qu\xc3\xa9", b"b", b"c"], "a": [b"1", b"\xff", None], "l": [[{"k": b"in"}]] * 3}
    pd.DataFrame(cells).to_parquet(path)
    rows = load_rows(SourceSettings(path=str(path)), split="train")
    reader = RowReader("prompt-completion", FORMATS["prompt-completion"], {"prompt": "q", "completion": "a"}, cells, "")
    first, second, _ = rows.dataset
    assert (reader(first).prompt, reader(first).completion, first["l"][0]["k"]) == ("qué", "1", "in")
    for column in ("a", "{{ a }}"):
        with pytest.raises(RowError, match="bytes that are not UTF-8"):
            read(second, {"prompt": "q", "completion": column}, "prompt-completion")
    with pytest.raises(RowError, match="bytes that are not UTF-8"):
        read(second, {"prompt": "{{ q }} {{ a }}", "completion": "q"}, "prompt-completion")


def test_the_way_out_of_a_template_that_finds_a_mapping_is_a_template() -> None:
    with pytest.raises(RowError) as caught:
        read({"q": "?", "l": [{"k": 1}]}, {"prompt": "q", "completion": "{{ l }}"}, "prompt-completion")
    assert str(caught.value) == "no text as '{{ l }}', but a dict; `{{ (l) | tojson }}` makes one text of it"
