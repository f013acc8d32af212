"""Recipes, mixes and pages of the documentation that come with the package."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Literal

import yaml

from malora_cli.errors import RecipeError

Kind = Literal["recipes", "data_mixes", "docs"]

_NEEDS = "# needs:"


def shipped(kind: Kind) -> Path:
    """The folder of shipped recipes, mixes or pages.

    In an installed package it lies inside; in a source checkout at the top level, where people look for it.

    Raises:
        RecipeError: The installation lacks it.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package / "_shipped" / kind, package.parents[1] / kind)
    for place in places:
        if place.is_dir():
            return place
    raise RecipeError("files of this installation are missing", where=str(places[0]), fix="Install the package again.")


def shipped_files(kind: Kind) -> dict[str, Path]:
    """What is shipped by name: the file's path without its suffix, such as ``examples/alpaca``."""
    folder, pattern = shipped(kind), "*.md" if kind == "docs" else "*.yaml"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob(pattern))}


def data_beside(mix: Path) -> list[Path]:
    """The files of rows that a mix brings along, each named relative to it."""
    tasks = yaml.safe_load(mix.read_text(encoding="utf-8"))["tasks"].values()
    sources = [task[split] for task in tasks for split in ("train", "test") if split in task]
    names = dict.fromkeys(source if isinstance(source, str) else source["path"] for source in sources)
    return [Path(name) for name in names if (mix.parent / name).is_file()]


def description_of(path: Path) -> str:
    """What a recipe says about itself: the first sentence of the comment on its top; empty if there is none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    # A line that names the schema is for the editor, not for people.
    told = [line for line in lines if not line.startswith("# yaml-language-server:")]
    top = takewhile(lambda line: line.startswith("#") and not line.startswith(_NEEDS), told)
    comment = " ".join(line.lstrip("#").strip() for line in top)
    sentence, dot, _ = comment.partition(". ")
    return f"{sentence}." if dot else comment


def needs_of(path: Path) -> str:
    """What a recipe says it needs: its comment ``# needs: ...``; empty if there is none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.removeprefix(_NEEDS).strip() for line in lines if line.startswith(_NEEDS)), "")
