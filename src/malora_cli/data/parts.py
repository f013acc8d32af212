"""The parts of an example: a column, a field within one, or a template over several."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes

from malora_cli.data.class_name import ClassName
from malora_cli.data.formats._base import RowError
from malora_cli.data.templates import ROW, Templates
from malora_cli.errors import DataError
from malora_cli.registry import did_you_mean

_JINJA = Templates()
_compiled, _expression, _minds_nulls = cache(_JINJA.compiled), cache(_JINJA.expression), cache(_JINJA.minds_nulls)
_POSITION = re.compile(r"-?[0-9]{1,9}")
_FAULTS_OF_TEMPLATES = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
)


class Part(Protocol):
    """What a mix gives for a role."""

    @property
    def columns(self) -> Sequence[str]:
        """The columns it is made of."""

    def __call__(self, row: Mapping[str, Any]) -> Any:
        """What it is in a row.

        Raises:
            RowError: A cell does not suit.
        """


@dataclass(frozen=True)
class Cell:
    """A column, or what a path leads to within one.

    Args:
        path: As the mix gives it.
        column: The column.
        keys: From its cell on: names of fields, positions in lists (from 0, or from the end with -1), fields of all
            items of a list.
    """

    path: str
    column: str
    keys: Sequence[str] = ()

    @property
    def columns(self) -> Sequence[str]:
        """The column."""
        return (self.column,)

    def __call__(self, row: Mapping[str, Any]) -> Any:
        """The cell of a row, or what is in it."""
        value = row[self.column]
        return self._within(value, self.keys) if self.keys else value

    def found(self, row: Mapping[str, Any]) -> bool:
        """Whether there is anything in a row."""
        with suppress(RowError):
            return self(row) is not None
        return False

    def _within(self, value: Any, keys: Sequence[str]) -> Any:
        for number, key in enumerate(keys):
            if isinstance(value, Mapping):
                value = value.get(key)
            elif isinstance(value, list) and _POSITION.fullmatch(key):
                value = value[int(key)] if -len(value) <= int(key) < len(value) else None
            elif isinstance(value, list):
                return [self._within(item, keys[number:]) for item in value]
            elif isinstance(value, ClassName) and key == "number":
                value = value.number
            elif value is not None:
                raise RowError(f"no '{self.path}'")
        return value


@dataclass(frozen=True)
class Wording:
    """Words that are the same for every row."""

    text: str
    columns: Sequence[str] = ()

    def __call__(self, row: Mapping[str, Any]) -> str:
        """The words."""
        return self.text


@dataclass(frozen=True)
class Filled:
    """A Jinja template.

    Args:
        role: What it is for, for messages.
        text: The template.
        columns: Those it names.
        may_be_none: Whether it is None, and no text, where all cells that it names are empty.
        lists: Whether one that is a single expression stands for the list that this finds.
        values: Whether it stands for whatever this finds.
    """

    role: str
    text: str
    columns: Sequence[str]
    may_be_none: bool
    lists: bool = False
    values: bool = False

    def __call__(self, row: Mapping[str, Any]) -> Any:
        """The template, filled with the cells of a row."""
        if self._is_none(row):
            return None
        try:
            return self._filled(row)
        except _FAULTS_OF_TEMPLATES as error:
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise RowError(f"a cell that the template of '{self.role}' cannot take ({reason})") from error

    def _is_none(self, row: Mapping[str, Any]) -> bool:
        if not self.may_be_none or not self.columns or _minds_nulls(self.text):
            return False
        return all(_is_empty(row[column]) for column in self.columns)

    def _filled(self, row: Mapping[str, Any]) -> Any:
        expression = _expression(self.text) if self.lists or self.values else None
        if expression is None:
            found = _compiled(self.text)(row)
            return None if self.may_be_none and _JINJA.showed_nulls_only else found
        value = expression(row)
        return value if self.values or value is None or isinstance(value, list | bytes) else str(value)


def _is_empty(cell: Any) -> bool:
    """Whether a cell is null, as tables and JSON have it, or empty, as CSV has it."""
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def is_template(text: str) -> bool:
    """Whether a text is a Jinja template, and not the name of a column."""
    return "{{" in text or "{%" in text


def columns_of_template(text: str, role: str, available: Collection[str], source: str) -> list[str]:
    """The columns that a template names.

    Raises:
        DataError: It is no template, or a column is not there.
    """
    fix = way_to_name(available)
    try:
        tree = _JINJA.parse(text)
        names = meta.find_undeclared_variables(tree)
        _JINJA.compiled(text)
    except RecursionError:
        raise DataError(f"the template of '{role}' is nested too deeply", where=source) from None
    except TemplateSyntaxError as error:
        what = f"the template of '{role}' is not valid Jinja (line {error.lineno}: {error.message})"
        raise DataError(what, where=source, fix=fix) from error
    if ROW in names and ROW not in available:
        found = _named_by_row(tree)
        if found is None:
            what = f"the template of '{role}' has '{ROW}' for something other than one column"
            raise DataError(what, where=source, fix=f"Write a column as {ROW}['NAME'].")
        names = (names - {ROW}) | found
    missing = sorted(names - set(available) - set(_JINJA.globals))
    if missing:
        raise DataError(
            f"the template of '{role}' names the column '{missing[0]}', which is not there; "
            f"{did_you_mean(missing[0], available)}",
            where=source,
            fix=fix,
        )
    return sorted(names & set(available))


def _named_by_row(tree: nodes.Template) -> set[str] | None:
    """The columns that a template names as ``row['NAME']``; None where ``row`` stands otherwise too."""
    found = [node.attr for node in tree.find_all(nodes.Getattr) if _is_row(node.node)]
    items = [node.arg for node in tree.find_all(nodes.Getitem) if _is_row(node.node)]
    found += [item.value for item in items if isinstance(item, nodes.Const) and isinstance(item.value, str)]
    return set(found) if len(found) == sum(map(_is_row, tree.find_all(nodes.Name))) else None


def _is_row(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == ROW


def way_to_name(columns: Collection[str]) -> str | None:
    """How to name a column that is no name of Jinja, where there is one."""
    odd = next((column for column in columns if not column.isidentifier()), None)
    return None if odd is None else f"Write {{{{ {ROW}['{odd[:40]}'] }}}} for the column '{odd[:40]}'."
