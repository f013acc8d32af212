"""``malora init``: from files of data, or datasets of the hub, to a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from malora_cli.cli import _completion

#: The base model that needs no download.
_BASE = "smollm2-135m-instruct"
#: A dataset of the hub.
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
#: What a file of rows ends in; a name like that is of a file that is not there.
_FILE = re.compile(r".*\.(jsonl?|csv|tsv|parquet|arrow)(\.\w+)?", re.IGNORECASE)


def register(app: typer.Typer) -> None:
    """Add ``malora init``."""
    app.command("init")(init)


def init(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="[TASK=]FILE...",
            help="Files or folders of training rows, or datasets of the hub as OWNER/NAME or OWNER/NAME:CONFIG; each "
            "is a task, named after it.",
        ),
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
    from malora_cli.recipe import ModelSettings, SourceSettings
    from malora_cli.registry import unknown

    named = [_named(given) for given in data]
    if twice := sorted({name for name, _ in named if [other for other, _ in named].count(name) > 1}):
        fix = "Name the tasks: TASK=FILE."
        raise RecipeError(f"two tasks would be called '{twice[0]}'", where="FILE", fix=fix)
    for given, (_, (path, _)) in zip(data, named, strict=True):
        if not path:
            fix = "Name a file, a folder or a dataset of the hub."
            raise DataError("the name of a file is empty", where=f"'{given}'", fix=fix)
        if not Path(path).exists() and not _is_of_the_hub(path):
            raise DataError("file not found", where=path)
    if method not in METHODS:
        raise RecipeError(unknown("method", method, METHODS), where="--method")
    check_free(folder / RECIPE, folder / MIX)
    if minutes is not None:
        check_base(ModelSettings(base=base))
    prepare_libraries()
    from rich.text import Text

    from malora_cli.init import guess_task, write_project

    guesses = [
        guess_task(SourceSettings(path=path, config=config), name, prompt, completion) for name, (path, config) in named
    ]
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


def _named(given: str) -> tuple[str, tuple[str, str | None]]:
    """Name of a task, and its path with the config of a dataset, from ``TASK=FILE`` or a file's name."""
    name, equals, place = given.partition("=")
    if not equals or Path(given).exists():
        name, place = "", given
    path, config = _parted(place)
    stem = (Path(path).resolve() if Path(path).is_dir() else Path(path)).name.split(".")[0]
    parts = [part for part in stem.replace("-", "_").split("_") if part not in ("train", "training")]
    return name or "_".join(parts) or Path(path).absolute().parent.name, (path, config)


def _parted(place: str) -> tuple[str, str | None]:
    """Path and config of a folder or a dataset of the hub; a file has no config."""
    path, colon, config = place.rpartition(":")
    if colon and not Path(place).exists() and (Path(path).is_dir() or _is_of_the_hub(path)):
        return path, config
    return place, None


def _is_of_the_hub(path: str) -> bool:
    return _HUB.fullmatch(path) is not None and not Path(path).exists() and _FILE.fullmatch(path) is None
