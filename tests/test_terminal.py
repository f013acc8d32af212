"""What reaches a terminal or a page from files of others: texts that show, and nothing that acts."""

from __future__ import annotations

import io
import logging
import re
import warnings
from pathlib import Path

import pytest
from rich.console import Group
from rich.table import Table
from rich.text import Text

import malora_cli
from malora_cli.characters import one_line, visible
from malora_cli.cli import main
from malora_cli.cli._common import prepare_libraries
from malora_cli.cli._evaluation import evaluation_table
from malora_cli.cli._statement import print_example
from malora_cli.cli._tables import comparison_table
from malora_cli.cli._terminal import SafeConsole, plain_table, say
from malora_cli.compare.table import compare
from malora_cli.results import EvalResult, NotedRows, RunRecord, Scores, TaskData, TaskEval, TrainEvent
from malora_cli.train.view import LiveView, PlainView
from report_runs import TASKS, bare_run, loss, manifest, page

#: Writes the clipboard, sets the title, clears the screen, the same in C1, and turns the rest of the line around.
EVIL = "e\x1b]52;c;ZXZpbA==\x07\x1b]0;title\x1b\\\x1b[2J\x9b2J\x9d0;x\x9c\x7f\x08\u202evil\u2066\u200f\x85\udc80"
#: In JSON, which has no halves of characters.
WRITTEN = EVIL.replace("\udc80", "")
#: As it shows; Rich itself drops a few of them, the bell among them.
SHOWN = "e␛]52;c;ZXZpbA=="
SOURCES = Path(malora_cli.__file__).parent
ACTING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def assert_harmless(output: str, *, styled: bool = False) -> None:
    """The text is there, and nothing of it acts; on a terminal Rich's own colours and cursor moves remain."""
    own = r"\r|\x1b\[(?:[\d;]*m|\?25[lh]|\d*[AK])" if styled else r"(?!)"
    left = re.sub(own, "", output)
    assert SHOWN in left
    assert not ACTING.search(left), ACTING.findall(left)


def test_what_is_replaced_and_what_stays() -> None:
    assert visible("a\x1b[0m\x9bb\u202ec\x7f\ud800") == "a␛[0m�b�c␡�"
    assert visible("two\n\tlines\r\n") == "two\n\tlines␍\n"
    assert one_line("a name\nrun:\tb") == "a name␊run:␉b"
    for text in ("plain", "Grüße, 你好, שלום, 👩‍💻", ""):
        assert visible(text) == one_line(text) == text
    everything = "".join(map(chr, range(0x11000)))
    assert len(visible(everything)) == len(everything)
    assert not ACTING.search(visible(everything))
    assert not re.search(r"[\n\t]", one_line(everything))
    one_line(everything).encode()  # surrogates are gone


def _evaluation() -> EvalResult:
    scores = Scores(score=0.5, loss=1.0)
    task = TaskEval(domain=WRITTEN, metric=WRITTEN, rows=3, base=scores, adapter=scores)
    return EvalResult(run=WRITTEN, created="now", step=100, limit=None, seconds=1, tasks={WRITTEN: task})


def _event() -> TrainEvent:
    return TrainEvent(step=1, seconds=1.0, tasks={EVIL: loss(2.0)}, learning_rate=1e-3, tokens_per_second=1.0)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(
    "shown",
    [
        EVIL,
        Text(EVIL, style="bold"),
        Group(EVIL, Text(f"[bold]{EVIL}[/]")),
        evaluation_table(_evaluation()),
        plain_table((EVIL,), title=EVIL),
        Table(EVIL, title=EVIL, caption=EVIL),
    ],
    ids=["str", "Text", "Group", "evaluation", "headings", "table"],
)
def test_no_console_acts_on_what_it_shows(shown: object, terminal: bool) -> None:
    output = io.StringIO()
    SafeConsole(file=output, width=500, force_terminal=terminal).print(shown)
    assert_harmless(output.getvalue(), styled=terminal)


def test_a_comparison_names_runs_tasks_and_domains_harmlessly(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / WRITTEN.replace("/", ""))
    data = {WRITTEN: TaskData(source=WRITTEN, rows=3, sha256="0a" * 32)}
    record.write_manifest(manifest({WRITTEN: WRITTEN}, test_data=data))
    output = io.StringIO()
    SafeConsole(file=output, width=500).print(comparison_table(compare([(record, _evaluation())] * 2)))
    assert output.getvalue().count(SHOWN) == 2 + 3  # two runs; the task twice, its domain once
    assert_harmless(output.getvalue())


def test_training_shows_tasks_and_rows_harmlessly(tiny_recipe: Path) -> None:
    output = io.StringIO()
    for terminal, kind in ((True, LiveView), (False, PlainView)):
        console = SafeConsole(file=output, width=500, force_terminal=terminal)
        view = kind(console)
        with view.running(2, {EVIL: 1.0}):
            view.tick(1)
            view.show(_event())
    assert_harmless(output.getvalue(), styled=True)


def test_a_row_is_shown_harmlessly() -> None:
    output = io.StringIO()
    print_example(EVIL, [(f"question {EVIL}", False), (EVIL, True)], SafeConsole(file=output))
    assert output.getvalue().count(SHOWN) == 3
    assert_harmless(output.getvalue())


def test_lines_warnings_and_logs_are_harmless(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(f"run: {EVIL}\nadapter: a forged line")
    assert_harmless(capsys.readouterr().out.removesuffix("\n"))
    monkeypatch.setattr(warnings, "showwarning", None)
    factory = logging.getLogRecordFactory()
    with warnings.catch_warnings():
        prepare_libraries()
        for _ in range(2):  # shown once for all that a command does
            warnings.showwarning(UserWarning(f"{EVIL}\nerror: a forged line"), UserWarning, "", 1)
    logging.getLogger("somebody.else").error("cannot read %s", EVIL)
    logging.setLogRecordFactory(factory)
    warned = capsys.readouterr().err
    assert_harmless(warned)
    assert warned.count("\n") <= 2


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_errors_are_harmless(
    debug: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main([*debug, "report", EVIL])
    assert caught.value.code == 2
    assert_harmless(capsys.readouterr().err)


def test_overrides_are_shown_harmlessly(tiny_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for override in (f"train.{EVIL}=1", f"train.steps={EVIL}", f"mix.tasks.{EVIL}.weight=1", f"{EVIL}=[", EVIL):
        with pytest.raises(SystemExit) as caught:
            main(["train", str(tiny_recipe), override, "--dry-run"])
        assert caught.value.code == 2
        captured = capsys.readouterr()
        assert not ACTING.search(captured.out + captured.err)


def test_a_page_has_nothing_that_acts(tmp_path: Path) -> None:
    record = bare_run(tmp_path)
    unused = [NotedRows(reason=EVIL, rows=1, samples=[1])]
    data = {name: TaskData(source=EVIL, rows=4, sha256="0a" * 32, unused=unused) for name in TASKS}
    names = {EVIL: EVIL, **TASKS}
    record.write_manifest(manifest(names, method=EVIL, base_model=EVIL, train_data=data, versions={EVIL: EVIL}))
    _evaluation().save(record.eval_dir / "a.json")
    source = page(record).source
    assert source.count(SHOWN) > 10
    assert not ACTING.search(source)


def test_a_command_on_a_page_is_one_command(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "runs" / "a; rm -rf $HOME")
    record.write_manifest(manifest(TASKS))
    source = page(record).source
    commands = re.findall(r"malora (?:train|eval|report) [^<]*", source)
    assert len(commands) == 3
    for command in commands:
        assert command.count("&#39;") == 2 * command.count("rm -rf")


def test_there_is_no_other_way_out() -> None:
    """Nothing but `cli._terminal` writes to a terminal, so nothing can forget to go through it.

    A sandbox's keeper, and what reads exports back, are processes of their own, whose output is a pipe; a run on Ray
    writes into a file. Of a conversation, what is typed is asked for where the terminal's own editing of lines is.
    """
    others = (
        "cli/_terminal.py",
        "cli/_conversation.py",
        "compare/on_ray.py",
        "evals/sandbox/_keeper.py",
        "export/fresh.py",
        "doctor/torch_child.py",
    )
    way_out = re.compile(r"(?<![\w.])print\(|\becho\(|\bConsole\(|std(?:out|err)\.write|print_exc|input\(")
    for file in SOURCES.rglob("*.py"):
        if file not in [SOURCES / other for other in others]:
            found = [line for line in file.read_text(encoding="utf-8").splitlines() if way_out.search(line)]
            assert [line for line in found if "``" not in line] == [], file
