"""The one way out: results, lines and errors, with nothing in them that a terminal acts on; no value is ever cut."""

from __future__ import annotations

import atexit
import errno
import io
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Literal, TypeVar

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.control import Control
from rich.segment import ControlType, Segment
from rich.table import Table
from rich.text import Text

from malora_cli.characters import one_line, visible
from malora_cli.errors import MaloraError

#: Columns of a console that is no terminal: more than any table needs, so that each of its rows stays one line.
_PIPED_COLUMNS = 10_000
#: What of a list is shown on a terminal before it is folded.
_FOLDED = 40

T = TypeVar("T")


#: What writing ends with where nobody reads any more: the other end of a pipe, or the terminal, is gone.
_GONE = frozenset((errno.EPIPE, errno.EIO))


class SafeConsole(Console):
    """A console on which texts only show: its own escape sequences stay, those inside texts become pictures.

    Where nobody reads any more it falls silent: that is no reason to end what is under way.
    """

    #: How many tasks, runs and the like of a list are shown; None is all of them.
    most: int | None = None

    def start(self, items: Iterable[T]) -> list[T]:
        """As much of a list as is shown."""
        return list(items)[: self.most]

    def tell_left_out(self, count: int, what: str) -> None:
        """Say how much of a list of ``count`` is not shown, where something is not."""
        if self.most is not None and count > self.most:
            line = f"… {count - self.most:,} more {what}; --full shows all {count:,}"
            self.print(Text(line, style="dim"), soft_wrap=True)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich's, through which everything goes that is printed, tables and live views too."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))

    def print_table(self, table: Table) -> None:
        """Print a table of plain texts, as rich does on a terminal; elsewhere the same a hundred times faster."""
        if self.is_terminal:
            self.print(table)
            return
        columns = [[one_line(str(cell)) for cell in (column.header, *column.cells)] for column in table.columns]
        widths = [max(map(cell_len, column)) for column in columns]
        aligned = [
            [_filled(cell, width, right=column.justify == "right") for cell in cells]
            for cells, width, column in zip(columns, widths, table.columns, strict=True)
        ]
        title = [] if table.title is None else [visible(str(table.title))]
        self.out("\n".join([*title, *map("  ".join, zip(*aligned, strict=True))]), highlight=False)

    def on_broken_pipe(self) -> None:
        """Fall silent; rich ends the process."""
        self.quiet = True
        _silence(self.file)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As rich's, which writes here."""
        try:
            super().__exit__(kind, error, trace)
        except OSError as lost:
            self.quiet = True
            _give_up(self.file, lost)


def result_console(*, full: bool = True) -> SafeConsole:
    """Standard output: as wide as the terminal, or as wide as it takes where it is piped or kept in a file.

    Args:
        full: Whether long lists are shown as a whole on a terminal too.
    """
    if not sys.stdout.isatty():
        # FORCE_COLOR asks for colours in a pipe, which rich would take for a terminal and redraw.
        colours: Literal["standard", "auto"] = "standard" if os.environ.get("FORCE_COLOR") else "auto"
        return SafeConsole(width=_PIPED_COLUMNS, force_terminal=False, color_system=colours)
    console = SafeConsole()
    console.most = None if full else _FOLDED
    return console


def error_console() -> SafeConsole:
    """Standard error, its long lines left whole."""
    return SafeConsole(stderr=True, soft_wrap=True, highlight=False)


def say(line: str, *, err: bool = False) -> None:
    """Print one line as it is, on standard output or standard error."""
    stream = sys.stderr if err else sys.stdout
    try:
        print(one_line(line), file=stream, flush=True)
    except OSError as lost:
        _give_up(stream, lost)


def say_json(told: Mapping[str, Any]) -> None:
    """Print what a command found as one JSON document on standard output; docs/reference/json.md has the keys of each.

    In ASCII, for `say` puts pictures in the place of characters that act, which would change values.
    """
    say(json.dumps({"schema": 1, **told}))


def say_for_now(line: str) -> None:
    """Print a line on a terminal whose place the next one takes: what is going on until there is something to say."""
    if (console := error_console()).is_terminal:
        console.print(Text(line, style="dim"), end="\r")
        atexit.register(console.control, Control((ControlType.ERASE_IN_LINE, 0)))  # where nothing took its place


def write(text: str) -> bool:
    """Print a part of a text as it is, on standard output; says whether anybody reads it."""
    try:
        print(visible(text), end="", flush=True)
    except OSError as lost:
        _give_up(sys.stdout, lost)
        return False
    return True


def replace_what_cannot_be_shown() -> None:
    """Let standard output put ``?`` for characters that its encoding lacks, as an ASCII terminal's does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _filled(cell: str, width: int, *, right: bool) -> str:
    blank = " " * (width - cell_len(cell))
    return blank + cell if right else cell + blank


def _give_up(stream: IO[str], lost: OSError) -> None:
    """Write no more to a stream, quietly where nobody reads any more.

    Raises:
        MaloraError: Somebody may, as where it goes to a file on a full disk.
    """
    _silence(stream)
    if lost.errno not in _GONE:
        where = "standard error" if stream is sys.stderr else "standard output"
        fix = "Send it elsewhere, or free some space."
        raise MaloraError(f"cannot be written ({lost.strerror})", where=where, fix=fix) from lost


def _silence(stream: IO[str]) -> None:
    """Let all that is still written to a stream go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def plain_table(texts: Sequence[str], numbers: Sequence[str] = (), *, title: str | None = None) -> Table:
    """A table without lines. Where it is too wide for a terminal, cells go on in the next line.

    Args:
        texts: Headings of the first columns.
        numbers: Headings of the columns after them, which are set to the right.
        title: Stands above the table.
    """
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in texts:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, overflow="fold", justify="right")
    return table
