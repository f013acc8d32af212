"""What the shell offers on the Tab key: names, runs, tasks and settings. Each answer must be there at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

#: A value, and what is said about it where the shell shows that.
Offer = tuple[str, str]


def recipes(incomplete: str) -> list[Offer]:
    """Shipped recipes and YAML files."""
    from malora_cli.recipe import description_of, shipped_files

    shipped = [(name, description_of(path)) for name, path in shipped_files("recipes").items()]
    return _starting(incomplete, [*shipped, *_files(incomplete, ".yaml", ".yml")])


def shipped(incomplete: str) -> list[Offer]:
    """Shipped recipes and mixes."""
    from malora_cli.recipe import description_of, shipped_files

    files = {**shipped_files("data_mixes"), **shipped_files("recipes")}
    return _starting(incomplete, [(name, description_of(path)) for name, path in files.items()])


def runs(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Runs, the newest first, and folders."""
    from malora_cli.results import runs_under

    found = runs_under(Path(ctx.params.get("runs") or "runs"))
    return _starting(incomplete, [*((str(run.path), "run") for run in found), *_files(incomplete)])


def tasks(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Tasks and domains of the run, or of the newest one; the last name of a list is completed."""
    from malora_cli.errors import MaloraError
    from malora_cli.results import find_run

    given = ctx.params.get("run")
    try:
        run = find_run(Path(given) if given else None, Path(ctx.params.get("runs") or "runs"))
        settings = run.recipe["mix"]["tasks"]
    except (MaloraError, KeyError):
        return []
    domains = dict.fromkeys(task["domain"] for task in settings.values())
    names = [*((name, task["domain"]) for name, task in settings.items()), *((f"domain:{it}", "") for it in domains)]
    return _last_of_list(incomplete, names)


def methods(incomplete: str) -> list[Offer]:
    """Methods; the last name of a list is completed, also behind ``NAME=``."""
    from malora_cli.adapters.methods import METHODS

    names = [(name, method.model_fields["name"].description or "") for name, method in METHODS.items()]
    before, sign, last = incomplete.rpartition("=")
    if sign and "," not in last:
        return [(f"{before}={name}", about) for name, about in _last_of_list(last, names)]
    return _last_of_list(incomplete, names)


def overrides(incomplete: str) -> list[Offer]:
    """Settings as ``train.steps=``; after the sign, the values of those that have a few."""
    from malora_cli.named import vocabulary
    from malora_cli.recipe import recipe_type

    known = vocabulary()
    if incomplete.startswith(("method=", "method.name=")):
        key, _, value = incomplete.partition("=")
        return [(f"{key}={name}", about) for name, about in methods(value)]
    keys = [("method=", "Adapter method, at its defaults"), *_keys(recipe_type(known))]
    for method in known.methods.values():
        keys += _keys(method, "method.")
    return _starting(incomplete, dict(keys).items())


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[Offer]:
    """The settings of a section and of those inside it, but for tasks and methods, which are one's own."""
    from pydantic import BaseModel

    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        elif prefix:
            yield f"{prefix}{name}=", field.description or ""


def _files(incomplete: str, *endings: str) -> Iterator[Offer]:
    """Folders, and files with one of the endings, as far as they are typed."""
    folder = os.path.dirname(incomplete)  # noqa: PTH120 (what was typed has to stay as it is, './' and all)
    try:
        entries = sorted(os.scandir(folder or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") and not os.path.basename(incomplete).startswith("."):  # noqa: PTH119
            continue
        if entry.is_dir():
            yield os.path.join(folder, entry.name, ""), "folder"  # noqa: PTH118
        elif entry.name.endswith(endings or ("\0",)):
            yield os.path.join(folder, entry.name), "file"  # noqa: PTH118


def _last_of_list(incomplete: str, names: Iterable[Offer]) -> list[Offer]:
    """Names for the part behind the last comma, each with what stands before it."""
    before, comma, _ = incomplete.rpartition(",")
    return _starting(incomplete, [(f"{before}{comma}{name}", about) for name, about in names])


def _starting(incomplete: str, offers: Iterable[Offer]) -> list[Offer]:
    return [(value, about) for value, about in offers if value.startswith(incomplete)]
