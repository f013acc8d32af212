"""The mix of a recipe: found by name or path, put inside the recipe, its data paths made absolute."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from malora_cli.errors import RecipeError
from malora_cli.recipe.files import read_document, shown_path
from malora_cli.recipe.packaged import shipped_files
from malora_cli.recipe.problems import show
from malora_cli.recipe.settings import metric_of_text
from malora_cli.registry import did_you_mean
from malora_cli.yaml_lines import DataPath, Document, Origin, Problem

_SUFFIXES = (".yaml", ".yml")
_SOURCES = ("train", "validation", "test")
#: What plain text stands for in a task.
_SHORT: dict[str, Callable[[str], dict[str, str]]] = {
    **dict.fromkeys(_SOURCES, lambda text: {"path": text}),
    "metric": metric_of_text,
}
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")


def inline_mix(document: Document) -> bool:
    """Replace the mix's name or path by what its file holds.

    Returns:
        Whether the recipe now holds a mix that can be checked; if not, the document's problems say why.
    """
    given = document.data.get("mix")
    if not isinstance(given, str):
        return True
    origin = document.origin(("mix",))
    file = _mix_file(given, origin)
    if isinstance(file, Path):
        try:
            document.graft(("mix",), _read_mix(file))
        except RecipeError as error:
            # It names its own file, and no place in the recipe.
            document.problems.append(Problem(Origin(str(error), origin.folder), (), ""))
        else:
            return True
    else:
        document.problems.append(Problem(origin, ("mix",), f"got {show(given)}; {file}"))
    return False


def _read_mix(file: Path) -> Document:
    found = read_document(file, "mix")
    if "tasks" not in found.data and {"model", "mix"} <= found.data.keys():
        fix = f"Name its mix: {show(found.data['mix'])}."
        raise RecipeError("this is a recipe, not a mix", where=shown_path(file), fix=fix)
    return found


def _mix_file(given: str, origin: Origin) -> Path | str:
    """The file of a mix, or what is wrong with its name."""
    if given.endswith(_SUFFIXES):
        path = origin.folder / os.path.expanduser(given)  # noqa: PTH111 (pathlib's raises for an unknown user)
        # pathlib's raises for a name that is too long for one.
        return path if os.path.exists(path) else f"file not found in {origin.folder}"  # noqa: PTH110
    shipped = shipped_files("data_mixes")
    nearest = did_you_mean(given, shipped)
    return shipped.get(given, f"not found among the shipped mixes, and a mix file ends in .yaml; {nearest}")


def spell_out_tasks(document: Document) -> None:
    """Write ``train: rows.jsonl`` as ``train: {path: rows.jsonl}``, which is what it stands for, and so a metric."""
    for path, task in _tasks(document):
        for name, spelled_out in _SHORT.items():
            if isinstance(task.get(name), str):
                section = (*path, name)
                task[name] = spelled_out(task[name])
                document.origins |= {(*section, key): document.origin(section) for key in task[name]}


def resolve_sources(document: Document, *, needed: bool = True) -> None:
    """Make data paths absolute that exist, each relative to the file (or command line) that gives it.

    Environment variables stay in them.

    What does not exist there may be a hub id, so it stays; only the data room can tell. A metric's file is never one.

    Args:
        document: The recipe.
        needed: Whether they are going to be read, so that every variable has to be there.
    """
    for path, task in _tasks(document):
        metric = task.get("metric")
        if isinstance(metric, dict) and isinstance(metric.get("path"), str):
            folder = document.origin((*path, "metric", "path")).folder
            metric["path"] = str(folder / existing(metric["path"], folder))
        for name in _SOURCES:
            source = task.get(name)
            if isinstance(source, dict) and isinstance(source.get("path"), str):
                place = (*path, name, "path")
                unset = next((name for name in _VARIABLE.findall(source["path"]) if name not in os.environ), None)
                if unset is not None and needed:
                    text = f"got {show(source['path'])}; environment variable {unset} is not set"
                    document.problems.append(Problem(document.origin(place), place, text))
                source["path"] = _located(source["path"], document.origin(place).folder)


def _located(given: str, folder: Path) -> str:
    """As `existing`, with the variables left in: their values are not for everybody who is given a run."""
    filled = os.path.expandvars(given)
    found = existing(filled, folder)
    if filled == given:
        return found
    own = os.path.expanduser(given)  # noqa: PTH111 (as below)
    relative = found != filled and not filled.startswith(("/", "~"))
    return str(folder / own) if relative or own != given else given


def existing(given: str, folder: Path) -> str:
    """``given`` as an absolute path if it is one from ``folder``, or a pattern of such, else as it is.

    ``~``, ``./`` and ``../`` begin paths and nothing else, so these become absolute whether they exist or not:
    whoever misses the file then says where it looked.
    """
    certain = given.startswith(("~", "./", "../")) or glob.has_magic(given)
    try:
        path = _absolute(folder / os.path.expanduser(given))  # noqa: PTH111 (as above)
        return str(path) if certain or (given and path.exists()) else given
    # Too long for a path, with a character that paths cannot have, or links that go round in circles.
    except (OSError, ValueError, RuntimeError):
        return given


def _absolute(path: Path) -> Path:
    """A path in full, a link at its end left: its own name says what it is, and what it leads to may say nothing."""
    return path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()


def _tasks(document: Document) -> Iterator[tuple[DataPath, dict[str, Any]]]:
    mix = document.data.get("mix")
    tasks = mix.get("tasks") if isinstance(mix, dict) else None
    if isinstance(tasks, dict):
        yield from ((("mix", "tasks", name), task) for name, task in tasks.items() if isinstance(task, dict))
