"""Where results go, and tables that are read on a terminal and by programs: no value is ever cut."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

#: Columns of a console that is no terminal: more than any table needs, so that each of its rows stays one line.
_PIPED_COLUMNS = 10_000


def result_console() -> Console:
    """Standard output: as wide as the terminal, or as wide as it takes where it is piped or kept in a file."""
    console = Console()
    return console if console.is_terminal else Console(width=_PIPED_COLUMNS)


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
