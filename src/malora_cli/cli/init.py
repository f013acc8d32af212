"""``malora init``: from files of data to a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from malora_cli.cli import _completion

#: The base model that needs no download.
_BASE = "smollm2-135m-instruct"


def register(app: typer.Typer) -> None:
    """Add ``malora init``."""
    app.command("init")(init)


def init(
    data: Annotated[
        list[str],
        typer.Argument(metavar="[TASK=]FILE...", help="Files of training rows, each a task; its name is the file's."),
    ],
    folder: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the recipe is written.")] = Path(),
    base: Annotated[str, typer.Option(metavar="MODEL", help="Base model: a short name, hub id or folder.")] = _BASE,
    method: Annotated[
        str,
        typer.Option(metavar="NAME", help="Method; `malora methods` lists them.", autocompletion=_completion.methods),
    ] = "malora",
    prompt: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the question, or a Jinja template of columns.")
    ] = None,
    completion: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of the answer.")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="N", help="Train about so long, by a step that is measured; default: one epoch."),
    ] = None,
) -> None:
    """Write a mix and a recipe for your own files: formats, columns and metrics are told from the rows, with reasons.

    Example: malora init reviews.csv faq.train.jsonl
    """
    from malora_cli.adapters.methods import METHODS
    from malora_cli.cli._common import prepare_libraries
    from malora_cli.cli._terminal import plain_table, result_console, say
    from malora_cli.errors import DataError, RecipeError
    from malora_cli.modeling.finding import check_base
    from malora_cli.projects import MIX, RECIPE, check_free
    from malora_cli.recipe import ModelSettings
    from malora_cli.registry import unknown

    named = [_named(given) for given in data]
    if twice := sorted({name for name, _ in named if [other for other, _ in named].count(name) > 1}):
        fix = "Name the tasks: TASK=FILE."
        raise RecipeError(f"two tasks would be called '{twice[0]}'", where="FILE", fix=fix)
    for _, path in named:
        if not path.exists():
            raise DataError("file not found", where=str(path))
    if method not in METHODS:
        raise RecipeError(unknown("method", method, METHODS), where="--method")
    check_free(folder / RECIPE, folder / MIX)
    if minutes is not None:
        check_base(ModelSettings(base=base))
    prepare_libraries()
    from rich.text import Text

    from malora_cli.init import guess_task, write_project

    guesses = [guess_task(path, name, prompt, completion) for name, path in named]
    if minutes is not None:
        say("measuring a step, for the number that fits", err=True)
    written = write_project(folder, guesses, base, method, minutes)
    table = plain_table(("task", "format", "metric", "why"))
    for guess in guesses:
        why = f"{guess.reasons['format']}; {guess.reasons['metric']}"
        table.add_row(*map(Text, (guess.name, guess.format, guess.metric, why)))
    result_console().print(table)
    if minutes is not None:
        told = next(line.strip() for line in written[0].read_text(encoding="utf-8").splitlines() if "  steps:" in line)
        say(f"length:  {told}")
    say(f"written: {', '.join(map(str, written))}")
    say(f"next:    malora check {written[0]}, then malora train {written[0]}")


def _named(given: str) -> tuple[str, Path]:
    """Name and file of a task, from ``TASK=FILE`` or a file's name."""
    name, equals, file = given.partition("=")
    if equals and not Path(given).exists():
        return name, Path(file)
    path = Path(given)
    stem = path.name.split(".")[0]
    parts = [part for part in stem.replace("-", "_").split("_") if part not in ("train", "training")]
    return "_".join(parts) or path.absolute().parent.name, path
