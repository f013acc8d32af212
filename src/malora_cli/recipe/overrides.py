"""``train.steps=5`` on the command line: values put over those of the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from malora_cli.recipe.problems import show
from malora_cli.registry import did_you_mean
from malora_cli.yaml_lines import DataPath, Document, Origin, Problem, read_yaml

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Override:
    """One override: where it goes, and its value with its origin."""

    path: DataPath
    document: Document

    @property
    def origin(self) -> Origin:
        """The command line, with what was typed."""
        return self.document.origins[()]


def parse_overrides(overrides: Sequence[str]) -> tuple[list[Override], list[Problem]]:
    """Read ``path=value`` texts, values as YAML; an empty value is null.

    Returns:
        The overrides that can be read, in order, and a problem for each that cannot.
    """
    parsed: list[Override] = []
    problems: list[Problem] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        origin = Origin(COMMAND_LINE, Path.cwd(), text)
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            problems.append(Problem(origin, path, "an override is written section.setting=value"))
            continue
        try:
            parsed.append(Override(path, read_yaml(value, partial(_on_any_line, origin))))
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or "it holds a character that YAML does not allow"
            problems.append(Problem(origin, path, f"the value is not valid YAML ({reason}); put it in quotes"))
    return parsed, problems


def _on_any_line(origin: Origin, _line: int) -> Origin:
    return origin


def apply_override(document: Document, override: Override) -> None:
    """Put one override into the document; what stands in its way becomes a problem.

    Unknown settings are left to validation, which knows the sections. Names of tasks are not: a mistyped one would
    be a new task with everything missing.
    """
    inner = document.data
    for depth, key in enumerate(override.path[:-1]):
        here = override.path[: depth + 1]
        if here[:-1] == ("mix", "tasks") and key not in inner:
            text = f"unknown task; {did_you_mean(key, inner)}" if inner else "the mix has no tasks"
            document.problems.append(Problem(override.origin, override.path, text))
            return
        if inner.get(key) is None:
            inner[key] = {}
            document.origins[here] = override.origin
        inner = inner[key]
        if not isinstance(inner, dict):
            text = f"{'.'.join(here)} is {show(inner)}, which has nothing inside"
            document.problems.append(Problem(override.origin, override.path, text))
            return
    document.graft(override.path, override.document)
