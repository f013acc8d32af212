"""``malora import``: from a configuration of another tool to a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from malora_cli.importing import Line

_STYLES = {"carried": "green", "approximated": "yellow", "left out": "bold red"}


def register(app: typer.Typer) -> None:
    """Add ``malora import``."""
    app.command("import")(import_)


def import_(
    tool: Annotated[str, typer.Argument(metavar="FROM", help="llamafactory, axolotl, ms-swift or trl.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Its configuration, or the shell line of ms-swift.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER|FILE", help="Where the recipe goes: a folder, or a .yaml file.")
    ] = Path(),
    strict: Annotated[bool, typer.Option("--strict", help="Write nothing if a key is left out; exit code 2.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Write a recipe and a mix from another tool's configuration, and say what becomes of each of its keys.

    Example: malora import llamafactory qwen3_lora_sft.yaml
    """
    from malora_cli.cli._common import prepare_libraries
    from malora_cli.cli._terminal import say, say_json
    from malora_cli.errors import RecipeError
    from malora_cli.registry import unknown

    prepare_libraries()
    from malora_cli.importing import TOOLS, check_tool, convert

    if tool not in TOOLS:
        raise RecipeError(unknown("tool", tool, TOOLS), where="FROM")
    check_tool(tool, TOOLS, file)
    imported = convert(TOOLS[tool], file, out)
    lost = [line.key for line in imported.lines if line.fate == "left out"]
    written = [] if strict and lost else imported.write()
    if as_json:
        say_json({"keys": [asdict(line) for line in imported.lines], "written": [*map(str, written)]})
    else:
        _print(imported.lines)
    if strict and lost:
        shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        raise RecipeError(f"left out: {shown}; --strict writes nothing then", where=str(file))
    say(f"written: {', '.join(map(str, written))}", err=as_json)
    say(f"next:    malora check {written[0]}, then malora train {written[0]}", err=as_json)


def _print(lines: Sequence[Line]) -> None:
    from rich.text import Text

    from malora_cli.cli._terminal import plain_table, result_console

    table = plain_table(("key", "", "where to, what differs, or why"))
    for line in lines:
        table.add_row(Text(line.key), Text(line.fate, _STYLES[line.fate]), Text(line.detail))
    result_console().print_table(table)
