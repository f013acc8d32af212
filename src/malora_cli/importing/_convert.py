"""From a configuration of another tool to a recipe and a mix, and what became of every key."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malora_cli.errors import RecipeError
from malora_cli.importing._base import Ledger, Line, Tool
from malora_cli.importing._data import METRIC, Places
from malora_cli.importing._settings import settle
from malora_cli.projects import MIX, RECIPE, Noted, document, write_project
from malora_cli.recipe import InvalidRecipeError

_SUFFIXES = (".yaml", ".yml")

#: By how many keys more another tool has to know a file to be the one that it is of; some are misspelt, some new.
_MORE_KEYS = 3


@dataclass(frozen=True)
class Imported:
    """A configuration as a recipe and a mix, not written yet.

    Args:
        lines: What became of every key.
        recipe: Where the recipe goes.
        mix: Where the mix goes.
        texts: What the two hold.
    """

    lines: Sequence[Line]
    recipe: Path
    mix: Path
    texts: tuple[str, str]

    def write(self) -> list[Path]:
        """Write them.

        Returns:
            What was written.

        Raises:
            RunError: A file is in the way, or cannot be written.
            RecipeError: They do not load. Nothing stays on disk then.
        """
        try:
            return write_project(self.recipe, self.mix, self.texts)
        except InvalidRecipeError as error:
            first, *more = error.problems
            others = f", and {len(more)} more" if more else ""
            raise RecipeError(f"its recipe would not load: {first}{others}", fix="Nothing was written.") from error


def check_tool(name: str, tools: Mapping[str, Tool], file: Path) -> None:
    """Make sure that a configuration is not another tool's, which knows more of its keys.

    Args:
        name: The tool that it is said to be of.
        tools: All tools.
        file: The configuration.

    Raises:
        RecipeError: It is, or cannot be read.
    """
    given = tools[name].load(file)
    unknown = {other: len(given.keys() - tool.keys.keys()) for other, tool in tools.items()}
    nearest = min(unknown, key=lambda other: unknown[other])
    if unknown[name] - unknown[nearest] >= _MORE_KEYS:
        raise RecipeError(
            f"this looks like a file of {tools[nearest].name}: {unknown[name]} of its {len(given)} keys are none of "
            f"{tools[name].name}",
            where=str(file),
            fix=f"Write malora import {nearest} {shlex.quote(str(file))}.",
        )


def convert(tool: Tool, file: Path, out: Path) -> Imported:
    """Read a configuration of another tool.

    Args:
        tool: The tool.
        file: Its configuration.
        out: The folder of the recipe and the mix, or the recipe itself, whose mix is then called after it.

    Raises:
        RecipeError: The file is no configuration of this tool, or asks for what is not trained here.
        DataError: Its data cannot be read.
    """
    one = out.suffix in _SUFFIXES
    recipe, mix = (out, out.with_name(f"{out.stem}.mix{out.suffix}")) if one else (out / RECIPE, out / MIX)
    ledger = Ledger(tool.name, file)
    given = tool.load(file)
    if not given:
        raise RecipeError("it says nothing", where=str(file))
    found = ledger.read(given, tool.keys)
    places = Places(file, recipe.parent)
    mixed = tool.mix(found, places, ledger)
    sections = settle(found, tool.defaults, mixed, places, ledger)
    sections["mix"] = mix.name
    validation = {"validation": mixed.settings.pop("validation")} if "validation" in mixed.settings else {}
    whole: dict[str, Any] = {**mixed.settings, **validation, "tasks": {}}
    for task in mixed.tasks:
        reason = "the loss alone; exact-match, rouge-l and others score answers"
        whole["tasks"][task.name] = {**task.settings, "metric": Noted(METRIC, reason)}
    head = f"{tool.name}'s {file.name}: what became of each of its keys, `malora import` has said."
    texts = (
        document(f"What is trained and how, from {head}", sections),
        document(f"What is learned, from {head}", whole),
    )
    return Imported(tuple(ledger.lines.values()), recipe, mix, texts)
