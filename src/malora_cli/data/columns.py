"""From the cells of a row to what its format asks for: columns, fields within them, lists of them, templates."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, meta

from malora_cli.data.formats._base import Example, Format, RowError
from malora_cli.data.templates import Templates
from malora_cli.errors import DataError
from malora_cli.recipe import Columns
from malora_cli.registry import did_you_mean

_JINJA = Templates()
#: Characters of a row: about a million tokens of English.
_LONGEST = 4_000_000
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


class RowReader:
    """Reads the example of a row.

    Args:
        name: Name of the format, for messages.
        form: The format.
        columns: What a mix maps to the roles; a role left out is a column of the same name.
        available: Columns of the rows.
        source: Where the rows come from, for messages.

    Raises:
        DataError: The format has no such role, or the rows no such column.
    """

    def __init__(self, name: str, form: Format, columns: Columns, available: Collection[str], source: str) -> None:
        unknown = set(columns) - set(form.all_roles)
        if unknown:
            raise DataError(
                f"format '{name}' has no role '{min(unknown)}'",
                where=source,
                fix=f"Its roles: {', '.join(form.all_roles)}.",
            )
        self.name, self.form, self.source, self.available = name, form, source, available
        optional = {role for role in form.optional if role not in columns and (form.templates or role not in available)}
        self.columns = {role: columns.get(role, role) for role in form.all_roles if role not in optional}
        # Found now, not at the first row.
        self.used = sorted({column for role in self.columns for column in self._columns_of(role)})

    @property
    def fingerprint(self) -> list[Any]:
        """What decides the example of a row."""
        return [self.name, sorted(self.columns.items())]

    def _columns_of(self, role: str) -> list[str]:
        """The columns that a role is made of."""
        if self.form.templates:
            return self._columns_of_template(role)
        given = self.columns[role]
        return [self._column(role, column) for column in ([given] if isinstance(given, str) else given)]

    def _column(self, role: str, column: str) -> str:
        for name in (column, column.partition(".")[0]):
            if name in self.available:
                return name
        raise DataError(
            f"there is no column '{column}' for '{role}'; {did_you_mean(column, self.available)}",
            where=self.source,
            fix=f"Map it in the mix, as in `columns: {{{role}: COLUMN}}`.",
        )

    def _columns_of_template(self, role: str) -> list[str]:
        text = self.columns[role]
        if not isinstance(text, str):
            raise DataError(f"the template of '{role}' is a list", where=self.source, fix="Give it as one text.")
        try:
            names = meta.find_undeclared_variables(_JINJA.parse(text))
        except RecursionError:
            raise DataError(f"the template of '{role}' is nested too deeply", where=self.source) from None
        except TemplateSyntaxError as error:
            raise DataError(
                f"the template of '{role}' is no Jinja (line {error.lineno}: {error.message})", where=self.source
            ) from error
        missing = sorted(names - set(self.available) - set(_JINJA.globals))
        if missing:
            raise DataError(
                f"the template of '{role}' names the column '{missing[0]}', which is not there; "
                f"{did_you_mean(missing[0], self.available)}",
                where=self.source,
            )
        if not names & set(self.available):
            raise DataError(
                f"the template of '{role}' names no column",
                where=self.source,
                fix="Write it as in {{ COLUMN }}, or take format prompt-completion.",
            )
        return sorted(names & set(self.available))

    @cached_property
    def _templates(self) -> dict[str, Template]:
        return {role: _JINJA.compiled(str(text)) for role, text in self.columns.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled templates, which cannot travel to another process."""
        return {name: value for name, value in self.__dict__.items() if name != "_templates"}

    def __call__(self, row: Mapping[str, Any]) -> Example:
        """The example of a row.

        Raises:
            RowError: It is none.
        """
        example = self.form.example({role: self._value(role, row) for role in self.form.all_roles})
        if any(turn.role == "assistant" and not turn.text.strip() for turn in example.turns):
            raise RowError("an empty completion, so nothing of it is supervised")
        _check_text("".join(turn.text for turn in example.turns))
        return example

    def _value(self, role: str, row: Mapping[str, Any]) -> Any:
        if role not in self.columns:
            return None
        if self.form.templates:
            return self._filled(role, row)
        given = self.columns[role]
        several = not isinstance(given, str)
        value = [self._cell(row, column) for column in given] if several else self._cell(row, str(given))
        if value is None or value != value:  # nothing, or NaN, which stands for nothing in tables
            if role in self.form.optional:
                return None
            raise RowError(f"no '{given}'")
        if role in self.form.structured:
            return value
        if not isinstance(value, str | int | float):
            raise RowError(f"no text as '{given}', but a {type(value).__name__}")
        return str(value).lower() if isinstance(value, bool) else str(value)  # as JSON has it

    def _cell(self, row: Mapping[str, Any], column: str) -> Any:
        if column in row:
            return row[column]
        value: Any = row
        for key in column.split("."):
            if not isinstance(value, Mapping):
                raise RowError(f"no '{column}'")
            value = value.get(key)
        return value

    def _filled(self, role: str, row: Mapping[str, Any]) -> str:
        _JINJA.begin()
        try:
            return self._templates[role].render(row)
        except _FAULTS_OF_TEMPLATES as error:
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise RowError(f"a cell that the template of '{role}' cannot take ({reason})") from error


def _check_text(text: str) -> None:
    if len(text) > _LONGEST:
        raise RowError(f"{len(text):,} characters, more than {_LONGEST:,}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError("half of a character (a lone surrogate), which is no text") from None
