"""CSV and TSV as programs write them: other delimiters, encodings and quotes, no header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from malora_cli.data.sources import load_rows
from malora_cli.errors import DataError, RecipeError
from malora_cli.recipe import SourceSettings
from train_runs import load, workplace


def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _rows(path: Path, **settings: Any) -> list[dict[str, Any]]:
    return list(load_rows(SourceSettings(path=str(path), **settings), split="train").dataset)


def _refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        _rows(path, **settings)
    return str(caught.value).replace(str(path), path.name)


@pytest.mark.parametrize(
    ("name", "content", "settings", "row"),
    [
        ("a.csv", "q;a\r\nx, y;1,5\r\n", {"delimiter": ";"}, {"q": "x, y", "a": "1,5"}),
        ("a.csv", "q\ta\nx\t1\n", {"delimiter": "\t"}, {"q": "x", "a": "1"}),
        ("a.csv", "q;a\n1\n", {"delimiter": ","}, {"q;a": "1"}),
        ("a.csv", '"Is it, now?",A\nIs it?,B\n', {"header": False}, {"0": "Is it, now?", "1": "A"}),
        ("a.csv", "q,a\nqué,sí\n".encode("latin-1"), {"encoding": "latin-1"}, {"q": "qué", "a": "sí"}),
        ("a.csv", "q,a\nqué,sí\n".encode("utf-16"), {"encoding": "utf-16"}, {"q": "qué", "a": "sí"}),
        ("a.csv", "\ufeffq,a\nx,1\n", {"encoding": "UTF-8"}, {"q": "x", "a": "1"}),
        ("a.jsonl", '{"q": "qué"}'.encode("cp1252"), {"encoding": "cp1252"}, {"q": "qué"}),
        ("a.json", '[{"q": "qué"}]'.encode("cp1252"), {"encoding": "cp1252"}, {"q": "qué"}),
        ("a.tsv", 'q\ta\n"So" he said\t"1\n', {"quotes": False}, {"q": '"So" he said', "a": '"1'}),
        ("a.tsv", 'q\ta\n"x\ty\nz"\t1\n', {"quotes": True}, {"q": "x\ty\nz", "a": "1"}),
        ("a.tsv", 'q\ta\n"x\ty\nz"\t1\n', {"quotes": False}, {"q": '"x', "a": "y"}),
        ("a.tsv", 'q\ta\n"x\nz"\t1\n', {}, {"q": "x\nz", "a": "1"}),
    ],
)
def test_how_a_table_is_written(
    name: str, content: str | bytes, settings: dict[str, Any], row: dict[str, str], tmp_path: Path
) -> None:
    assert _rows(_write(tmp_path / name, content), **settings)[0] == row


def test_the_first_row_without_a_header_says_how_many_fields_there_are(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "x,A\n\ny, z,B\nu,C\n")
    assert _refusal(path, header=False) == ("a.csv:3: has 3 fields, and the first row has 2. Mend or remove the line.")
    _write(path, "x,A\ny,B\n")
    assert _rows(path, header=False) == [{"0": "x", "1": "A"}, {"0": "y", "1": "B"}]
    assert _rows(path) == [{"x": "y", "A": "B"}]  # the same file, and not its other entry of the cache


@pytest.mark.parametrize(
    ("name", "content", "settings", "line"),
    [
        (
            "a.csv",
            "q;a\nx;1\n",
            {},
            "a.csv:1: names one column, 'q;a'. Set what parts the fields, as in `delimiter: \";\"` of the source.",
        ),
        (
            "a.csv",
            "q\ta\nx\t1\n",
            {},
            "a.csv:1: names one column, 'q\ta'. Set what parts the fields, as in `delimiter: \"\\t\"` of the source.",
        ),
        (
            "a.csv",
            "q,a\nx,1\nqué,1\n".encode("latin-1"),
            {},
            "a.csv:3: is not UTF-8 at byte 3. Save the file as UTF-8, or set its `encoding` in the source, such as "
            "latin-1.",
        ),
        (
            "a.csv",
            "q,a\nqué,1\n",
            {"encoding": "ascii"},
            "a.csv:2: is not ASCII at byte 3. Save the file as UTF-8, or set its `encoding` in the source, such as "
            "latin-1.",
        ),
        (
            "a.tsv",
            'q\ta\nx\t1\n"So" he said\t1\n',
            {},
            "a.tsv:3: is not valid CSV ('\t' expected after '\"'). Mend the line, or set `quotes: false` of the source "
            "where quotes are text.",
        ),
        (  # two rows of a file in which quotes are text
            "a.tsv",
            'q\ta\n"So he said\t1\nSo he said"\t2\n',
            {},
            "a.tsv:2: has a field between quotes that goes over lines with tabs. Set `quotes` of the source: true "
            "where it is one field, false where quotes are text.",
        ),
        (
            "a.jsonl",
            '{"q": 1}',
            {"delimiter": ";"},
            "a.jsonl: `delimiter` is for CSV and TSV files. Remove `delimiter`.",
        ),
        ("a.json", '[{"q": 1}]', {"header": False}, "a.json: `header` is for CSV and TSV files. Remove `header`."),
    ],
)
def test_a_table_written_otherwise_is_told_how_to_read_it(
    name: str, content: str | bytes, settings: dict[str, Any], line: str, tmp_path: Path
) -> None:
    assert _refusal(_write(tmp_path / name, content), **settings) == line


def test_files_that_have_types_are_in_no_encoding(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"q": ["x"]}), tmp_path / "a.parquet")
    assert _refusal(tmp_path / "a.parquet", encoding="latin-1") == (
        "a.parquet: `encoding` is for text files. Remove `encoding`."
    )


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("encoding=latn-1", "got 'latn-1'; unknown encoding; examples are latin-1, cp1252, utf-16, gb18030"),
        ("encoding=base64", "got 'base64'; unknown encoding"),
        ("delimiter='\"'", "it cannot be the end of a line or a quote"),
        ("delimiter=;;", "at most 1"),
    ],
)
def test_settings_that_read_nothing_are_refused(setting: str, line: str, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(workplace(tmp_path, tiny_model), f"mix.tasks.copy.train.{setting}")
    assert line in str(caught.value)


def test_zstandard(tmp_path: Path) -> None:
    lines = b"".join(b'{"q": "%d"}\n' % number for number in range(3))
    path = _write(tmp_path / "a.jsonl.zst", pa.compress(lines, codec="zstd", asbytes=True))
    assert [row["q"] for row in _rows(path)] == ["0", "1", "2"]
    _write(path, path.read_bytes()[:-4])
    assert _refusal(path) == "a.jsonl.zst: cannot be read (Truncated compressed stream). Mend or replace it."
