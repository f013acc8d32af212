"""Where output cannot go or cannot be shown: full devices, closed pipes, terminals that know ASCII only."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.text import Text

from malora_cli.cli import main
from malora_cli.cli._evaluation import evaluation_table
from malora_cli.cli._tables import comparison_table
from malora_cli.cli._terminal import SafeConsole, plain_table, result_console, say
from malora_cli.compare.table import Comparison, Row
from malora_cli.errors import MaloraError
from report_runs import evaluation

FULL = Path("/dev/full")
full_device = pytest.mark.skipif(not FULL.exists(), reason="only Linux has a device that is always full")


@pytest.fixture
def closed_pipe() -> Iterator[io.TextIOWrapper]:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        yield stream


def _code(*arguments: str) -> object:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


@full_device
def test_a_full_device_is_one_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for write in (lambda: say("a line"), lambda: result_console().print("a table")):
        with FULL.open("w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            with pytest.raises(MaloraError, match=r"^standard output: cannot be written \(No space left on device\)"):
                write()
            say("what comes after is dropped")
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert _code("recipes", "ls") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: standard output: cannot be written (No space left on device)")


@full_device
def test_nothing_is_raised_where_errors_have_no_place_either(monkeypatch: pytest.MonkeyPatch) -> None:
    with FULL.open("w") as full, FULL.open("w") as other:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", other)
        assert _code("recipes", "ls") == 2


@pytest.mark.parametrize("arguments", [("recipes", "ls"), ("--help",), ("--version",), ("recipes", "schema")])
def test_a_closed_pipe_is_no_failure(
    arguments: tuple[str, ...],
    closed_pipe: io.TextIOWrapper,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdout", closed_pipe)
    descriptor = os.dup(1)  # rich sends that one into nowhere
    try:
        assert _code(*arguments) == 0
    finally:
        os.dup2(descriptor, 1)
        os.close(descriptor)
    assert capsys.readouterr().err == ""


def test_characters_that_cannot_be_shown_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert _code("recipes", "ls") == 0
    say("Grüße")
    result_console().print("»你好«", soft_wrap=True)
    lines = written.getvalue().decode("ascii").splitlines()
    assert lines[0].startswith("recipe")
    assert lines[-2:] == ["Gr??e", "????"]


def test_tables_of_results_are_folded_but_for_their_means() -> None:
    console = SafeConsole(file=io.StringIO(), width=200)
    console.most = 2
    result = evaluation({f"t{i}": f"d{i % 3}" for i in range(5)})
    rows = [Row(section, f"{section}{i}", [float(i), 1.0], True, ".1f") for section in "ab" for i in range(5)]
    mean = Row("b", "all domains", [2.0, 1.0], True, ".1f")
    comparisons = [Comparison(["x", "y"], [*some, mean]) for some in (rows, rows[:2])]
    for table, heads in (
        (evaluation_table(result, 2), ["task", "t0", "t1", "d0", "d1", "all"]),
        (
            comparison_table(comparisons[0], 2),
            ["x", "a", "a0", "a1", "b", "b0", "b1", "all"],
        ),
        (comparison_table(comparisons[1], 2), ["x", "a", "a0", "a1", "b", "all"]),
    ):
        console.file = io.StringIO()
        console.print(table)
        lines = console.file.getvalue().splitlines()
        assert [line.split()[0] for line in lines if line.strip()] == heads
    console.file = io.StringIO()
    console.tell_left_out(2, "tasks")
    console.tell_left_out(1003, "tasks")
    assert console.file.getvalue() == "… 1,001 more tasks; --full shows all 1,003\n"


def test_a_piped_table_is_rich_s_to_the_letter() -> None:
    table = plain_table(("task", "domain"), ("rows",), title="\nRows")
    for cells in (("short", "[b]你好[/b]", "7"), ("a much longer name", "é", "1,234"), ("", "", "")):
        table.add_row(*map(Text, cells))
    written = []
    for show in (SafeConsole.print, SafeConsole.print_table):
        console = SafeConsole(file=io.StringIO(), width=500)
        show(console, table)
        written.append([line.rstrip() for line in console.file.getvalue().splitlines()])
    assert written[0] == written[1]
    console = SafeConsole(file=io.StringIO(), width=500)
    table.add_row(Text("two\nlines\x1b[2J"))
    console.print_table(table)
    assert "two␊lines␛[2J" in console.file.getvalue()
