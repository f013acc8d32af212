"""Draw the README's picture of the live view: ``python docs/images.py RUN [STEP]``; `make images` takes the quickstart.

It is drawn by replaying the run's log through the view itself, with the log's own times.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console

from malora_cli.results import Event, RunRecord, TrainEvent
from malora_cli.train.view import LiveView

PICTURE = Path(__file__).with_name("live-view.svg")
_WIDTH = 100


def main() -> None:
    """Write the picture of a run at two thirds of its steps, or at the step that is asked for."""
    run = RunRecord(Path(sys.argv[1]))
    last = int(sys.argv[2]) if len(sys.argv) > 2 else run.manifest.steps * 2 // 3
    events = [event for event in run.metrics if event.step <= last]
    picture = Console(width=_WIDTH, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    picture.print(drawn(events, run.manifest.steps, run.manifest.task_share)._picture())
    svg = picture.export_svg(title="malora train quickstart")
    # The fonts that rich names would be fetched from elsewhere.
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")


def drawn(events: list[Event], steps: int, share: dict[str, float]) -> LiveView:
    """The live view after some events, as it was at the time of the last one."""
    view, now, before = LiveView(Console(file=io.StringIO())), 0.0, 0
    with view.running(steps, share):
        view.progress.get_time = view.progress.tasks[0]._get_time = lambda: now
        view.tick(1)
        for event in events:
            if isinstance(event, TrainEvent):
                for step in range(before + 1, event.step + 1):
                    now += event.seconds_per_step or 0.0
                    view.tick(step)
                before = event.step
            view.show(event)
    return view


if __name__ == "__main__":
    main()
