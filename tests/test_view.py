"""What is shown while a run trains."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.console import Console

from malora_cli.results import EvalEvent, TaskLoss, TrainEvent
from malora_cli.train.view import LiveView, PlainView, sparkline, view_for


def _trained(step: int, balance: float | None = None, **losses: float) -> TrainEvent:
    """A log step whose tasks have the losses given, over 10 tokens each."""
    return TrainEvent(
        step=step,
        seconds=1.0,
        tasks={name: TaskLoss(nats=10 * loss, tokens=10, examples=1) for name, loss in losses.items()},
        learning_rate=0.1,
        tokens_per_second=1234.4,
        balance_loss=balance,
    )


def _evaluated(step: int, *, stderr: float | None = None, **losses: float) -> EvalEvent:
    tasks = {name: TaskLoss(nats=10 * loss, tokens=10, examples=1, stderr_nats=stderr) for name, loss in losses.items()}
    return EvalEvent(step=step, seconds=1.0, tasks=tasks)


def _terminal(width: int = 120) -> Console:
    return Console(force_terminal=True, file=StringIO(), width=width, height=40)


def _shown(console: Console) -> str:
    """What came out, without colours and movements of the cursor."""
    assert isinstance(console.file, StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def _last_picture(console: Console) -> list[str]:
    text = _shown(console)
    return [line.rstrip() for line in text[text.rindex("task  ") :].splitlines()]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0], "▁"),
        ([2.0, 2.0], "▁▁"),
        ([0.0, 7.0], "▁█"),
        ([float(number) for number in range(8)], "▁▂▃▄▅▆▇█"),
        ([7.0, 3.0, 0.0], "█▄▁"),
        ([1e-12, 2e-12], "▁█"),
    ],
)
def test_sparkline(values: list[float], expected: str) -> None:
    assert sparkline(values) == expected


def test_a_sparkline_is_of_the_newest_values() -> None:
    """An outlier long ago does not flatten what is seen."""
    line = sparkline([1e6, *[float(number % 2) for number in range(24)]])
    assert line == "▁█" * 12


def test_the_plain_view_prints_a_line_an_event() -> None:
    console = Console(file=StringIO(), width=40)
    view = PlainView(console)
    with view.running(10, dict.fromkeys(["add", "copy"], 0.5)):
        view.show(_evaluated(0, add=2.0, copy=1.0))
        for step in range(1, 6):
            view.tick(step)
        view.show(_trained(5, add=2.0, copy=1.0))
    first, second, third = _shown(console).splitlines()
    assert third == "share of rows, and target: add 50.0% (50.0%)  copy 50.0% (50.0%)"
    assert first == "step 0/10  validation  add 2.000  copy 1.000"
    assert re.fullmatch(
        r"step 5/10  loss 1\.500  add 2\.000  copy 1\.000  1234 tokens/s  eta 0:00", second
    )  # longer than the console is wide, and yet one line


def test_the_loss_is_over_tokens_not_tasks() -> None:
    console = Console(file=StringIO(), width=200)
    view = PlainView(console)
    event = _trained(1, add=1.0).model_copy(
        update={
            "tasks": {
                "a": TaskLoss(nats=90, tokens=90, examples=9),
                "b": TaskLoss(nats=30, tokens=10, examples=1),
                "unseen": TaskLoss(nats=0, tokens=0, examples=0),
            }
        }
    )
    with view.running(1, dict.fromkeys(["a", "b"], 0.5)):
        view.tick(1)
        view.show(event)
    assert "loss 1.200  a 1.000  b 3.000  1234" in _shown(console)


def test_time_left_counts_from_where_a_resumed_run_began(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("malora_cli.train.view.time.perf_counter", lambda: now[0])
    console = Console(file=StringIO(), width=200)
    view = PlainView(console)
    with view.running(100, dict.fromkeys(["a"], 0.5)):
        view.tick(91)
        view.tick(92)
        now[0] = 20.0  # two steps in 20 seconds, eight to go
        view.show(_trained(92, a=1.0))
    assert _shown(console).splitlines()[0].endswith("eta 1:20")


def test_brackets_in_names_are_names() -> None:
    for make in (PlainView, LiveView):
        console = _terminal()
        view = make(console)
        with view.running(2, dict.fromkeys(["[red]a[/red]", "b[/]"], 0.5)):
            view.tick(1)
            view.show(_trained(1, **{"[red]a[/red]": 1.0, "b[/]": 2.0}))
        assert "[red]a[/red]" in _shown(console)
        assert "b[/]" in _shown(console)


def test_the_live_view_has_a_row_for_every_task() -> None:
    console = _terminal()
    view = LiveView(console)
    with view.running(4, dict.fromkeys(["add", "copy", "unseen"], 0.5)):
        view.show(_evaluated(0, add=3.0, copy=3.0, unseen=3.0))
        view.tick(1)
        view.show(_trained(1, add=2.0, copy=1.0))
        view.tick(2)
        view.show(_trained(2, balance=1.25, add=1.5, copy=1.75))
        view.show(_evaluated(2, add=2.5, copy=3.5, unseen=3.0))
    heading, *rows = _last_picture(console)
    assert " ".join(heading.split()) == "task loss change validation change share (target) loss over time"
    assert [row.split() for row in rows if row][:3] == [
        ["add", "1.500", "-0.500", "2.500", "-0.500", "50.0%", "(50.0%)", "█▁"],
        ["copy", "1.750", "+0.750", "3.500", "+0.500", "50.0%", "(50.0%)", "▁█"],
        ["unseen", "-", "-", "3.000", "+0.000", "0.0%", "(50.0%)"],
    ]
    assert "2/4" in _shown(console)
    assert "loss 1.625  1234 tokens/s  balance 1.25" in _shown(console)


def test_a_rising_loss_is_red_and_a_falling_one_green() -> None:
    console = _terminal()
    view = LiveView(console)
    with view.running(2, dict.fromkeys(["up", "down"], 0.5)):
        view.tick(1)
        view.show(_trained(1, up=1.0, down=1.0))
        view.tick(2)
        view.show(_trained(2, up=2.0, down=0.5))
    assert isinstance(console.file, StringIO)
    assert "\x1b[31m+1.000" in console.file.getvalue()
    assert "\x1b[32m-0.500" in console.file.getvalue()


SEESAW = [
    {"a": 2.0, "b": 1.0, "c": 4.0},
    {"a": 1.0, "b": 0.5, "c": 4.05},
    {"a": 1.5, "b": 0.2, "c": 4.0},
]


@pytest.mark.parametrize("make", [PlainView, LiveView])
@pytest.mark.parametrize("resumed", [False, True])
def test_who_gained_and_who_lost_shows_between_evaluations(make: type[PlainView | LiveView], resumed: bool) -> None:
    """Beyond the standard error of a difference, 0.141 here; a resumed run remembers what it measured before."""
    console, view = _terminal(200), make(_terminal(200))
    view.console = console
    events = [_evaluated(10 * number, stderr=0.1, **losses) for number, losses in enumerate(SEESAW)]
    with view.running(40, dict.fromkeys("abc", 1 / 3), events[:2] if resumed else []):
        for event in events[2:] if resumed else events:
            view.show(event)
    shown = _shown(console)
    expected = "since step 10: gained b -0.300; lost a +0.500  above their best: a (best at step 10) +0.500  imbalance "
    assert expected + "0.334" in shown  # of 0.75, 0.2 and 1
    assert ("since step 0" in shown) is (not resumed and make is PlainView)


def test_a_change_within_its_standard_error_is_no_gain() -> None:
    console = Console(file=StringIO(), width=200)
    view = PlainView(console)
    with view.running(4, {"a": 1.0}):
        view.show(_evaluated(0, stderr=0.3, a=2.0))
        view.show(_evaluated(2, stderr=0.3, a=1.9))
    assert _shown(console).splitlines()[-1] == (
        "step 2/4  since step 0: no task gained or lost beyond its standard error"
    )


def test_many_tasks_are_counted_not_listed() -> None:
    console = Console(file=StringIO(), width=200)
    view = PlainView(console)
    names = [f"t{number}" for number in range(9)]
    with view.running(4, dict.fromkeys(names, 1 / 9)):
        view.show(_evaluated(0, stderr=0.01, **dict.fromkeys(names, 2.0)))
        view.show(_evaluated(2, stderr=0.01, **{name: 1.0 + number / 10 for number, name in enumerate(names)}))
    assert "gained t0 -1.000, t1 -0.900, t2 -0.800, t3 -0.700 and 5 more" in _shown(console)


def test_the_live_view_says_what_it_waits_for() -> None:
    console = _terminal()
    view = LiveView(console)
    with view.running(2, dict.fromkeys(["a"], 0.5)):
        view.evaluating()
        view.show(_evaluated(0, a=1.0))
        assert view.progress.tasks[0].fields["note"] == "first steps"
        view.tick(1)
        view.evaluating()
        assert view.progress.tasks[0].fields["note"] == "evaluating"
    assert "1/2" in _shown(console)
    view = LiveView(_terminal())
    with view.running(2, dict.fromkeys(["a"], 0.5)):
        view.evaluating()
    assert "measuring the base model" in _shown(view.console)
    assert "0/2" in _shown(view.console)


def test_a_resumed_run_is_shown_from_where_it_goes_on() -> None:
    view = LiveView(_terminal())
    with view.running(15, dict.fromkeys(["a"], 0.5), [_evaluated(0, a=2.0), _trained(10, a=1.0)]):
        pass
    assert "10/15" in _shown(view.console)
    assert "going on from step 10" in _shown(view.console)


def test_a_resumed_runs_bar_counts_its_own_time() -> None:
    """Fifty steps at once would look like a very fast run."""
    view = LiveView(_terminal())
    with view.running(100, dict.fromkeys(["a"], 0.5)):
        view.tick(51)
        task = view.progress.tasks[0]
        assert (task.completed, task.total) == (51, 100)
        assert sum(sample.completed for sample in task._progress) == 1


def test_an_error_leaves_the_terminal_as_it_was() -> None:
    console = _terminal()
    view = LiveView(console)
    with pytest.raises(KeyboardInterrupt), view.running(2, dict.fromkeys(["a"], 0.5)):
        raise KeyboardInterrupt
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().rindex("\x1b[?25h") > console.file.getvalue().rindex("\x1b[?25l")


def test_a_terminal_gets_the_live_view() -> None:
    assert isinstance(view_for(_terminal()), LiveView)
    assert isinstance(view_for(Console(file=StringIO())), PlainView)
    dumb = Console(force_terminal=True, file=StringIO(), _environ={"TERM": "dumb"})
    assert isinstance(view_for(dumb), PlainView)
