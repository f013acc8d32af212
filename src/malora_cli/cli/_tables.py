"""Tables of results for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from malora_cli.cli._terminal import plain_table
from malora_cli.compare.table import Comparison, Row

if TYPE_CHECKING:  # it takes torch, which a comparison of runs does without
    from malora_cli.export.cost import Cost


def comparison_table(comparison: Comparison, most: int | None = None) -> Table:
    """One column a run; the best of a row is marked with *. Of each section so many rows, or all, and the mean."""
    table = plain_table(("",), [escape(name) for name in comparison.runs])
    for section, found in groupby(comparison.rows, key=lambda row: row.section):
        table.add_row(Text(section, style="bold"))
        _add_rows(table, [row for row in list(found)[:most] if row is not comparison.rows[-1]])
    _add_rows(table, comparison.rows[-1:])
    return table


def _add_rows(table: Table, rows: Iterable[Row]) -> None:
    for row in rows:
        best = row.best()
        cells = [
            Text(f"{text}*", style="bold green") if index in best else Text(f"{text} ")
            for index, text in enumerate(row.shown())
        ]
        table.add_row(Text(f"  {row.name}"), *cells)


def merge_table(costs: Mapping[str, Iterable[Cost]]) -> Table:
    """Validation loss of every task with the base model, the run and what is exported, of each export by its name."""
    table = plain_table(("gates", "task"), ("base", "run", "export", "kept", "KL", "same top"))
    for name, measured in costs.items():
        for cost in measured:
            kept = "-" if cost.kept != cost.kept else f"{cost.kept:.0%}"
            figures = (f"{cost.base:.4f}", f"{cost.routed:.4f}", f"{cost.merged:.4f}", kept)
            table.add_row(Text(name), Text(cost.task), *figures, f"{cost.divergence:.4f}", f"{cost.same_top:.1%}")
    return table
