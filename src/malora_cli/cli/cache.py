"""``malora cache``: the encoded rows, and the answers of base models, that are kept on disk."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from malora_cli.characters import plural

if TYPE_CHECKING:
    from malora_cli.data.cache import Entry

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MIB = 2**20


def register(app: typer.Typer) -> None:
    """Add ``malora cache`` and its commands."""
    cache = typer.Typer(no_args_is_help=True, help="List and remove encoded rows and answers that are kept on disk.")
    cache.command("ls")(list_entries)
    cache.command("prune")(prune_entries)
    app.add_typer(cache, name="cache")


JsonOption = Annotated[bool, typer.Option("--json", help="Print it as JSON, sizes in bytes.")]


def list_entries(as_json: JsonOption = False) -> None:
    """List what is kept, the entry used last first.

    Example: malora cache ls
    """
    import time

    from rich.text import Text

    from malora_cli.cli._terminal import plain_table, result_console, say_json
    from malora_cli.data.cache import cache_root, entries
    from malora_cli.evals.store import answers_root, kept_files

    found, answers = entries(), [path.stat().st_size for path in kept_files()]
    if as_json:
        rows = {"folder": str(cache_root()), "entries": [_plain(entry) for entry in found]}
        kept = {"folder": str(answers_root()), "files": len(answers), "bytes": sum(answers)}
        say_json({"rows": rows, "answers": kept})
        return
    table = plain_table(("entry", "from"), ("rows", "MiB", "used"))
    for entry in (entry for entry in found if "rows" in entry.about):  # the others are a number or two
        days = (time.time() - entry.last_used) / _UNITS["d"]
        table.add_row(
            Text(entry.path.name[:24]),
            Text(str(entry.about.get("source", ""))),
            f"{entry.about['rows']:,}",
            f"{entry.bytes / _MIB:.1f}",
            f"{days:.0f} days ago" if days >= 1 else "today",
        )
    console = result_console()
    console.print(table)
    total, rest = sum(entry.bytes for entry in found) / _MIB, len(found) - table.row_count
    told = f"{plural(table.row_count, 'entry', 'entries')} of rows"
    told += f", {rest} of numbers about them" if rest else ""
    console.print(Text(f"{told}, {total:,.1f} MiB in {cache_root()}"), soft_wrap=True)
    if answers:
        count = plural(len(answers), "file")
        told = f"{count} of answers of base models, {sum(answers) / _MIB:,.1f} MiB in {answers_root()}"
        console.print(Text(told), soft_wrap=True)


def prune_entries(
    unused_for: Annotated[
        str, typer.Option(metavar="TIME", help="Remove what was not used for so long, as 30d, 12h or 0d for all.")
    ] = "30d",
    as_json: JsonOption = False,
) -> None:
    """Remove what was not used lately, and what killed runs left behind; it is made again when it is needed.

    Example: malora cache prune --unused-for 7d
    """
    from malora_cli.cli._terminal import say, say_json
    from malora_cli.data.cache import prune
    from malora_cli.errors import MaloraError
    from malora_cli.evals.store import prune as prune_answers

    match = re.fullmatch(r"([0-9]{1,9})([mhdw])", unused_for)
    if match is None:
        raise MaloraError(
            f"got '{unused_for}'; must be a number of up to nine digits with m, h, d or w, such as 30d",
            where="--unused-for",
        )
    seconds = int(match[1]) * _UNITS[match[2]]
    gone, answers = prune(unused_for_seconds=seconds), prune_answers(unused_for_seconds=seconds)
    if as_json:
        removed_answers = {"files": len(answers), "bytes": sum(answers)}
        removed = {"entries": [_plain(entry) for entry in gone], "answers": removed_answers}
        say_json({"removed": removed})
        return
    told = f", and {plural(len(answers), 'file')} of answers, {sum(answers) / _MIB:,.1f} MiB" if answers else ""
    say(f"removed {plural(len(gone), 'entry', 'entries')}, {sum(entry.bytes for entry in gone) / _MIB:,.1f} MiB{told}")


def _plain(entry: Entry) -> dict[str, Any]:
    """An entry of rows as plain data; ``last_used`` in seconds since 1970."""
    about = {name: entry.about.get(name) for name in ("source", "rows")}
    return {"name": entry.path.name, **about, "bytes": entry.bytes, "last_used": entry.last_used}
