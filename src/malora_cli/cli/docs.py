"""``malora docs``: the pages of the documentation, in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add ``malora docs``."""
    app.command("docs")(docs)


def docs(
    topic: Annotated[
        str | None, typer.Argument(metavar="[TOPIC]", help="Page to show, such as data.", show_default=False)
    ] = None,
    search: Annotated[
        str | None, typer.Option("--search", metavar="WORDS", help="List the sections that hold all of these words.")
    ] = None,
) -> None:
    """Show a page of the documentation; without TOPIC the list of pages.

    Example: malora docs --search "out of memory"
    """
    from malora_cli.errors import MaloraError
    from malora_cli.recipe import shipped_files
    from malora_cli.registry import unknown

    pages = {name: path for name, path in shipped_files("docs").items() if name != "index"}
    if topic is not None and topic not in pages:
        raise MaloraError(unknown("topic", topic, pages), where="TOPIC")
    chosen = pages if topic is None else {topic: pages[topic]}
    if search is not None:
        if not (found := _found(chosen, search)):
            raise MaloraError(f"no section has all of the words '{search}'", where="--search", fix="Try fewer.")
        _print_table(("topic", "section"), found)
    elif topic is None:
        titles = ((name, next(heading for heading, _ in _sections(path))) for name, path in pages.items())
        _print_table(("topic", "what it is about"), list(titles))
    else:
        _print_page(pages[topic].read_text(encoding="utf-8"))


def _found(pages: dict[str, Path], search: str) -> list[tuple[str, str]]:
    """Page and heading of every section with all of the words, those first that have them side by side."""
    words = search.casefold().split()
    sections = [(name, *section) for name, path in pages.items() for section in _sections(path)]
    held = [section for section in sections if all(word in section[2] for word in words)]
    return [section[:2] for section in sorted(held, key=lambda section: " ".join(words) not in section[2])]


def _sections(page: Path) -> Iterator[tuple[str, str]]:
    """Heading of every section, and its words in lower case with one space between."""
    parts: list[list[str]] = []
    in_code = False
    for line in page.read_text(encoding="utf-8").splitlines():
        in_code ^= line.startswith("```")
        if line.startswith("#") and not in_code:
            parts.append([])
        parts[-1].append(line)
    for lines in parts:
        yield lines[0].lstrip("# "), " ".join(" ".join(lines).casefold().split())


def _print_table(headings: tuple[str, str], rows: list[tuple[str, str]]) -> None:
    from rich.text import Text

    from malora_cli.cli._terminal import plain_table, result_console

    table = plain_table(headings)
    for name, text in rows:
        table.add_row(Text(name, "bold"), Text(text))
    result_console().print(table)


def _print_page(text: str) -> None:
    """Print Markdown set for the terminal, or as it is where there is none."""
    from rich.markdown import Markdown

    from malora_cli.cli._terminal import result_console, write

    console = result_console()
    if console.is_terminal:
        console.print(Markdown(text, hyperlinks=False))  # they lead from page to page
    else:
        write(text)
