"""Records inside what a JSON file holds, and what is said of a file that holds something other than rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from malora_cli.data import text_files
from malora_cli.data.columns import RowReader
from malora_cli.data.formats import FORMATS
from malora_cli.data.formats._base import RowError
from malora_cli.data.rows import Rows
from malora_cli.data.sources import load_rows
from malora_cli.errors import DataError, RecipeError
from malora_cli.recipe import SourceSettings
from train_runs import load, workplace

SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Rivers",
            "paragraphs": [
                {"qas": [{"id": 1, "question": "a?"}, {"id": 2, "question": "b?"}], "context": "The Rhine."},
                {"qas": [], "context": "Nobody asks."},
                {"qas": [{"id": 3, "question": "c?", "context": "its own"}], "context": "The Elbe."},
            ],
        },
        {"title": "Seas", "paragraphs": [{"qas": [{"id": 4, "question": "d?"}], "context": "The Baltic."}]},
    ],
}
TATQA = [
    {"table": {"table": [["2019", "2.50"]]}, "questions": [{"q": "x", "answer": 18}, {"q": "y", "answer": ["a"]}]},
    {"table": {"table": []}, "questions": [{"q": "z", "answer": 1.50}]},
]
CLINC = {"oos_val": [["t", "oos"]], "train": [["pay", "bill"], ["what", "time"], ["x", "y"]], "val": [["z", "w"]]}
PUBMED = {"12": {"Q": "a?", "labels": ["x"]}, "7": {"Q": "b?", "labels": []}}
BBH = {"canary": "no", "examples": [{"input": "not ( True )", "target": "False"}, {"input": "x", "target": "y"}]}
PARALLEL = {"question": ["a?", "b?"], "answer": [1, None], "source": "web"}
COQA = [{"story": "s", "questions": ["a", "b"], "answers": {"text": ["1", "2"]}}, {"story": "t", "questions": []}]


def _write(path: Path, value: Any) -> Path:
    """A value as it is, one to a line in JSON lines, or a file's text."""
    lines = path.suffix == ".jsonl" and isinstance(value, list)
    text = "\n".join(json.dumps(item) for item in value) if lines else json.dumps(value, indent=1)
    path.write_text(value if isinstance(value, str) else text, encoding="utf-8")
    return path


def _load(path: Path, records: Any = None, **settings: Any) -> Rows:
    return load_rows(SourceSettings(path=str(path), records=records, **settings), split="train")


def _refusal(path: Path, records: Any = None) -> str:
    with pytest.raises(DataError) as caught:
        _load(path, records)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path.parent}/", "")


CASES: dict[str, tuple[Any, Any, list[dict[str, Any]]]] = {
    "SQuAD": (
        SQUAD,
        "data.*.paragraphs.*.qas.*",
        [
            {"version": "1.1", "title": "Rivers", "context": "The Rhine.", "id": 1, "question": "a?"},
            {"version": "1.1", "title": "Rivers", "context": "The Rhine.", "id": 2, "question": "b?"},
            {"version": "1.1", "title": "Rivers", "context": "its own", "id": 3, "question": "c?"},
            {"version": "1.1", "title": "Seas", "context": "The Baltic.", "id": 4, "question": "d?"},
        ],
    ),
    "TAT-QA": (
        TATQA,
        "questions.*",
        [
            {"table": {"table": [["2019", "2.50"]]}, "q": "x", "answer": 18},
            {"table": {"table": [["2019", "2.50"]]}, "q": "y", "answer": ["a"]},
            {"table": {"table": []}, "q": "z", "answer": 1.5},
        ],
    ),
    "CLINC150": (
        CLINC,
        "train.*",
        [{"0": "pay", "1": "bill"}, {"0": "what", "1": "time"}, {"0": "x", "1": "y"}],
    ),
    "lists": (CLINC["train"], "*", [{"0": "pay", "1": "bill"}, {"0": "what", "1": "time"}, {"0": "x", "1": "y"}]),
    "every split": (
        CLINC,
        "*.*",
        [
            {"_key": "oos_val", "0": "t", "1": "oos"},
            {"_key": "train", "0": "pay", "1": "bill"},
            {"_key": "train", "0": "what", "1": "time"},
            {"_key": "train", "0": "x", "1": "y"},
            {"_key": "val", "0": "z", "1": "w"},
        ],
    ),
    "PubMedQA": (PUBMED, "*", [{"_key": "12", "Q": "a?", "labels": ["x"]}, {"_key": "7", "Q": "b?", "labels": []}]),
    "BIG-Bench-Hard": (
        BBH,
        "examples.*",
        [{"canary": "no", "input": "not ( True )", "target": "False"}, {"canary": "no", "input": "x", "target": "y"}],
    ),
    "a list without a star": (
        CLINC,
        "train",
        [{"0": "pay", "1": "bill"}, {"0": "what", "1": "time"}, {"0": "x", "1": "y"}],
    ),
    "parallel lists without stars": (
        PARALLEL,
        ["question", "answer"],
        [{"source": "web", "question": "a?", "answer": 1}, {"source": "web", "question": "b?", "answer": None}],
    ),
    "a position": (BBH, "examples.1", [{"canary": "no", "input": "x", "target": "y"}]),
    "parallel lists": (
        PARALLEL,
        ["question.*", "answer.*"],
        [{"source": "web", "question": "a?", "answer": 1}, {"source": "web", "question": "b?", "answer": None}],
    ),
    "parallel lists in rows": (
        COQA,
        ["questions.*", "answers.text.*"],
        [{"story": "s", "questions": "a", "text": "1"}, {"story": "s", "questions": "b", "text": "2"}],
    ),
    "plain values": ({"fine": ["a", "b"], "bad": ["c"]}, "fine.*", [{"fine": "a"}, {"fine": "b"}]),
    "values by label": (
        {"fine": ["a"], "bad": ["c"]},
        "*.*",
        [{"_key": "fine", "_value": "a"}, {"_key": "bad", "_value": "c"}],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_records_are_rows_with_the_fields_of_what_they_lie_in(name: str, tmp_path: Path) -> None:
    value, records, expected = CASES[name]
    rows = list(_load(_write(tmp_path / "x.json", value), records).dataset)
    assert [{name: value for name, value in row.items() if value is not None} for row in rows] == [
        {name: value for name, value in row.items() if value is not None} for row in expected
    ]


@pytest.mark.parametrize("name", ["TAT-QA", "parallel lists in rows", "lists", "a position"])
def test_json_lines_are_a_list_of_their_lines(name: str, tmp_path: Path) -> None:
    value, records, expected = CASES[name]
    value = value if isinstance(value, list) else [value]
    rows = list(_load(_write(tmp_path / "x.jsonl", value), records).dataset)
    assert rows == [{**dict.fromkeys(rows[0]), **row} for row in expected]


def test_a_path_goes_on_where_objects_stand_one_after_another(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(item, indent=1) for item in TATQA)
    for records in ("questions.*", "*.questions.*"):
        assert [row["q"] for row in _load(_write(tmp_path / "x.json", text), records).dataset] == ["x", "y", "z"]


def test_numbers_are_written_as_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"train": [["x", 1.50], ["y", 18446744073709551616]], "unit": 2.0}')
    rows = list(_load(path, "train.*").dataset)
    assert [(str(row["1"]), str(row["unit"])) for row in rows] == [("1.50", "2.0"), ("18446744073709551616", "2.0")]


def test_a_record_is_found_by_its_line_or_else_its_number(tmp_path: Path) -> None:
    pretty = _load(_write(tmp_path / "pretty.json", SQUAD), "data.*.paragraphs.*.qas.*").places
    text = (tmp_path / "pretty.json").read_text().splitlines()
    assert ['"id": 3' in text[pretty.number(row)] for row in range(4)] == [False, False, True, False]
    assert pretty.name(2) == f"row {pretty.number(2)}"
    flat = _load(_write(tmp_path / "flat.json", json.dumps(SQUAD)), "data.*.paragraphs.*.qas.*").places
    assert [flat.name(row) for row in range(4)] == ["record 1", "record 2", "record 3", "record 4"]
    lines = _load(_write(tmp_path / "x.jsonl", TATQA), "questions.*").places
    assert [lines.name(row) for row in range(3)] == ["row 1", "row 1", "row 2"]
    array = _load(_write(tmp_path / "array.json", json.dumps(BBH["examples"]))).places
    assert array.name(1) == "record 2"


def test_a_long_list_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "_LOT", 200)
    rows = _load(_write(tmp_path / "x.json", {"train": [[f"q{n}", n] for n in range(100)]}), "train.*")
    assert [row["1"] for row in rows.dataset] == list(range(100))
    assert len(_load(tmp_path / "x.json", "train.*", stream=7).dataset) == 7


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            SQUAD,
            "x.json: the file holds one object ('data': a list of 2 objects, 'version': a plain value), not rows. "
            "Say where the rows are in it, as in `records: data.*` (or deeper: data.*.paragraphs.*, "
            "data.*.paragraphs.*.qas.*).",
        ),
        (
            CLINC,
            "x.json: the file holds one object ('train': a list of 3 lists, 'oos_val': a list of 1 list, 'val': a list "
            "of 1 list), not rows. Say where the rows are in it, as in `records: train.*`.",
        ),
        (
            PUBMED,
            "x.json: the file holds one object ('12': an object of Q, labels, '7': an object of Q, labels), not rows. "
            'Say where the rows are in it, as in `records: "*"`.',
        ),
        (
            BBH,
            "x.json: the file holds one object ('examples': a list of 2 objects, 'canary': a plain value), not rows. "
            "Say where the rows are in it, as in `records: examples.*`.",
        ),
        (
            PARALLEL,
            "x.json: the file holds one object ('question': a list of 2 texts, 'answer': a list of 2 numbers, "
            "'source': a plain value), not rows. Say where the rows are in it, as in `records: "
            "[question.*, answer.*]`.",
        ),
        (
            CLINC["train"],
            'x.json: the file holds a list of 3 lists, not rows. Say where the rows are in it, as in `records: "*"`.',
        ),
        ({"data": {"train": [["a", "b"]]}}, "`records: data.train.*`."),
        ({"q": {"0": "a?", "1": "b?"}, "a": {"0": "x", "1": None}}, "`records: [q.*, a.*]`."),  # as pandas has it
        ({f"k{n}": {"a": 1} for n in range(9)}, "an object of a and 5 more), not rows. Say"),
        ("7", "x.json: the file holds a plain value, not rows. A row is a JSON object: one field a column."),
    ],
)
def test_another_shape_is_said_with_what_to_write(value: Any, expected: str, tmp_path: Path) -> None:
    message = _refusal(_write(tmp_path / "x.json", value))
    assert expected in message
    if "`records: " in message:  # and that works
        records = message.partition("`records: ")[2].partition("`")[0].strip('"[]').split(", ")
        assert len(_load(tmp_path / "x.json", records[0] if len(records) == 1 else records).dataset)


def test_lines_that_are_lists_are_said_to_be(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", CLINC["train"])
    assert (
        'each line holds a list of 2 texts, not rows. Say where the rows are in it, as in `records: "*"`'
        in _refusal(path)
    )
    assert [row["1"] for row in _load(path, "*").dataset] == ["bill", "time", "y"]


def test_one_row_alone_is_one(tmp_path: Path) -> None:
    assert len(_load(_write(tmp_path / "x.json", {"prompt": "x", "completion": "y"})).dataset) == 1
    assert len(_load(_write(tmp_path / "x.jsonl", [{"messages": [{"role": "user"}]}])).dataset) == 1


@pytest.mark.parametrize("indent", [None, 1])
def test_json_that_is_called_json_lines_is_read(indent: int | None, tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", json.dumps(BBH["examples"], indent=indent))
    assert [row["target"] for row in _load(path).dataset] == ["False", "y"]


@pytest.mark.parametrize(
    ("value", "records", "expected"),
    [
        (
            SQUAD,
            "data.*.paragraph.*",
            "no records found at 'data.*.paragraph.*': no 'paragraph' at 'data.*'; did you",
        ),
        (TATQA, "question.*", "no records found at 'question.*': no 'question' in it; did you mean 'questions'?"),
        (BBH, "nothing", "no 'nothing' in it; known: canary, examples"),
        ({"rows": []}, "rows.*", "no records found at 'rows.*': nothing at 'rows'"),
        (PARALLEL, ["question.*", "source"], "x.json:3: has lists of different lengths as question.* and source"),
        ({"a": [1], "b": [2, 3]}, ["a.*", "b.*"], "x.json:7: has lists of different lengths as a.* and b.*"),
        (BBH, "canary.*", "x.json:2: has a plain value where '*' of `records` looks for more"),
        ('{"rows": [{"a": 1},\n{"a": 1, "a": 2}]}', "rows.*", "x.json:2: names 'a' twice"),
        ('{"rows": [{"a": 1},\n{"a": ]}', "rows.*", "x.json:2: is not valid JSON (Expecting value at column 7)"),
        ('{"rows": []} {', "rows.*", "x.json:1: is not valid JSON (Expecting property name"),
        ("", "rows.*", "the file is empty"),
        ("[" * 100_000, "rows.*", "x.json:1: is nested too deeply"),
    ],
)
def test_records_that_are_not_there(value: Any, records: Any, expected: str, tmp_path: Path) -> None:
    assert expected in _refusal(_write(tmp_path / "x.json", value), records)


def test_a_path_has_no_empty_part() -> None:
    with pytest.raises(ValueError, match="a path has an empty part"):
        SourceSettings(path="x", records="data..rows")


@pytest.mark.parametrize("records", [["a.q.*", "b.q.*"], ["*", "*.*"], ["q", "q"]])
def test_lists_side_by_side_have_names_of_their_own(records: list[str]) -> None:
    with pytest.raises(ValueError, match="two paths end in one name"):
        SourceSettings(path="x", records=tuple(records))


def test_records_lie_in_parquet_too(tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_pylist([COQA[0], {"story": "t", "questions": [], "answers": {"text": []}}, COQA[0]]),
        tmp_path / "x.parquet",
    )
    rows = _load(tmp_path / "x.parquet", ["questions.*", "answers.text.*"])
    assert list(rows.dataset)[2] == {"story": "s", "questions": "a", "text": "1"}
    assert [rows.places.name(row) for row in range(4)] == ["row 1", "row 1", "row 3", "row 3"]
    assert "no 'question' in it; did you mean 'questions'?" in _refusal(tmp_path / "x.parquet", "question.*")
    assert len(_load(tmp_path / "x.parquet", "questions.*", stream=2).dataset) == 2


def test_a_table_of_texts_has_no_records_inside(tmp_path: Path) -> None:
    assert "x.csv: a table of texts has no records inside" in _refusal(_write(tmp_path / "x.csv", "a,b\n1,2\n"), "a.*")


def test_a_recipe_says_where_the_records_are(tmp_path: Path, tiny_model: Path) -> None:
    workplace(tmp_path, tiny_model)
    for given, expected in (("questions.*", "questions.*"), (["q.*", "a.*"], ("q.*", "a.*"))):
        override = f"mix.tasks.add.train={json.dumps({'path': 'x.json', 'records': given})}"
        assert load(tmp_path / "tiny.yaml", override).recipe.mix.tasks["add"].train.records == expected
    with pytest.raises(RecipeError, match=r"train.records: got 'a..b'; a path has an empty part"):
        load(tmp_path / "tiny.yaml", "mix.tasks.add.train={path: x.json, records: a..b}")
    (tmp_path / "mix.yaml").write_text("tasks:\n  add: {train: {path: x.json, records: *}}\n")
    with pytest.raises(
        RecipeError, match=r"mix\.yaml:2:\d+: not valid YAML: .*Put text that begins with \* in quotes\."
    ):
        load(tmp_path / "tiny.yaml")


def test_a_path_through_a_list_is_told_of_records(tmp_path: Path) -> None:
    rows = _load(_write(tmp_path / "x.json", TATQA))
    columns = {"prompt": "questions.q", "completion": "questions.answer"}
    reader = RowReader("prompt-completion", FORMATS["prompt-completion"], columns, rows.columns, "x")
    with pytest.raises(
        RowError, match=r"but a list; .* makes one text of it, `records: questions.\*` a row of each item"
    ):
        reader(rows.dataset[0])
