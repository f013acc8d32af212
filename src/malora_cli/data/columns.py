"""From the cells of a row to the example that its format makes of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from malora_cli.data.formats._base import Example, Format, RowError, as_text
from malora_cli.data.parts import Cell, Filled, Part, Wording, columns_of_template, is_template, way_to_name
from malora_cli.errors import DataError
from malora_cli.recipe import Columns
from malora_cli.registry import did_you_mean

#: A fact that any task may have: rows of one value of it, such as questions on one text, are no independent evidence.
CLUSTER = "cluster"
#: The fact that names the answers of which one is chosen.
CHOICES = "choices"
#: Characters of a row: about a million tokens of English.
_LONGEST = 4_000_000
#: Filters that make one text of what is none.
_WAYS: dict[type, str] = {list: " | join(', ')", dict: " | tojson"}


class RowReader:
    """Reads the example of a row.

    Args:
        name: Name of the format, for messages.
        form: The format.
        columns: What a mix gives for the roles: a column, a path within one, a Jinja template, or a list of these. A
            role left out is a column of the same name.
        available: Columns of the rows.
        source: Where the rows come from, for messages.
        speakers: Roles of names in messages that are not usual ones.
        needs: Facts that the task's metric needs of a row.
        wants: Facts that it takes where a column is named for them.
        scored: Whether the rows are scored, so that their facts are read.

    Raises:
        DataError: The format has no such role, or the rows no such column.
    """

    def __init__(
        self,
        name: str,
        form: Format,
        columns: Columns,
        available: Collection[str],
        source: str,
        speakers: Mapping[str, str] | None = None,
        needs: Sequence[str] = (),
        wants: Sequence[str] = (),
        scored: bool = False,
    ) -> None:
        known = dict.fromkeys((*form.all_roles, *form.keys, *needs, *wants, CLUSTER))
        unknown = set(columns) - set(known)
        if unknown:
            raise DataError(
                f"format '{name}' has no role '{min(unknown)}'", where=source, fix=f"Its roles: {', '.join(known)}."
            )
        if speakers and not form.keys:
            raise DataError(
                f"format '{name}' has no messages that somebody speaks", where=source, fix="Leave speakers out."
            )
        self.name, self.form, self.source, self.available = name, form, source, available
        self.scored = scored
        self.needs = tuple(needs) if scored else ()
        self.keys = {key: columns.get(key) for key in form.keys} | ({"speakers": speakers} if form.keys else {})
        absent = {
            role for role in form.optional if role not in columns and (role in form.mapped or role not in available)
        }
        facts = [need for need in needs if need not in form.facts]
        facts += [fact for fact in (*wants, CLUSTER) if fact in columns]
        self.facts = tuple(facts) if scored else ()
        self.structured = {*form.structured, *facts}
        roles = dict.fromkeys((*form.all_roles, *self.facts))
        self.columns = {role: columns.get(role, role) for role in roles if role not in absent}
        # Found now, not at the first row.
        self._parts = {role: self._part_of(role, given) for role, given in self.columns.items()}
        self.used = sorted(
            {column for parts in self._parts.values() for part in _listed(parts) for column in part.columns}
        )

    @property
    def needed(self) -> set[str]:
        """Columns without which no row is an example."""
        parts = [part for role, part in self._parts.items() if role not in self.form.optional]
        return {column for part in parts if not isinstance(part, tuple) for column in part.columns}

    def unfound(self, rows: Iterable[Mapping[str, Any]]) -> str | None:
        """A path that may find nothing in a row and finds nothing in any of some, as where it has a slip."""
        paths = [
            part
            for role, part in self._parts.items()
            if role in self.form.optional and isinstance(part, Cell) and part.keys
        ]
        rows = list(rows) if paths else ()
        return next((part.path for part in paths if rows and not any(map(part.found, rows))), None)

    @property
    def fingerprint(self) -> list[Any]:
        """What decides the example of a row."""
        return [self.name, sorted(self.columns.items()), self.keys, self.scored, self.needs]

    def _part_of(self, role: str, given: str | Sequence[str]) -> Part | tuple[Part, ...]:
        if isinstance(given, str):
            return self._one_part(role, given)
        if role not in (*self.structured, self.form.answer):
            raise DataError(
                f"a list of columns as '{role}', where one text is wanted",
                where=self.source,
                fix=f'Write them as one template, as in `columns: {{{role}: "{{{{ A }}}} {{{{ B }}}}"}}`.',
            )
        return tuple(self._one_part(role, column) for column in given)

    def _one_part(self, role: str, given: str) -> Part:
        if given in self.available or not is_template(given):
            wording = role in self.form.mapped and role not in self.structured
            words = wording and given not in self.available and " " in given
            return Wording(given) if words else self._cell(role, given)
        columns = columns_of_template(given, role, self.available, self.source)
        if role in self.form.roles and not columns:
            raise DataError(
                f"the template of '{role}' names no column, so it is the same for every row",
                where=self.source,
                fix=way_to_name(self.available) or "Write a column as {{ COLUMN }}.",
            )
        answer, values = role == self.form.answer, role in self.structured
        optional = role in self.form.optional
        return Filled(role, given, columns, may_be_none=optional or answer, lists=answer, values=values)

    def _cell(self, role: str, given: str) -> Cell:
        column, *keys = [given] if given in self.available else given.split(".")
        if column in self.available:
            return Cell(given, column, keys)
        raise DataError(
            f"column not found: '{given}' for '{role}'; {did_you_mean(given, self.available)}",
            where=self.source,
            fix=f"Map it in the mix, as in `columns: {{{role}: COLUMN}}`.",
        )

    def __call__(self, row: Mapping[str, Any]) -> Example:
        """The example of a row.

        Raises:
            RowError: It is none.
        """
        given = {role: self._value(role, row) for role in self.form.all_roles} | self.keys
        answers = given.get(self.form.answer)
        if isinstance(answers, list):
            example = self.form.example({**given, self.form.answer: answers[0]})
            example = replace(example, others=tuple(answers[1:]))
        else:
            example = self.form.example(given)
        if any(turn.role == "assistant" and not (turn.text.strip() or turn.extra) for turn in example.turns):
            raise RowError("an empty completion, so nothing of it is supervised")
        _check_text("".join(f"{turn.text}{turn.extra or ''}" for turn in example.turns))
        return replace(example, facts=self._facts(row, example)) if self.facts or example.facts else example

    def _facts(self, row: Mapping[str, Any], example: Example) -> Mapping[str, Any]:
        """What metrics may want of a row that is scored."""
        if not self.scored:
            return {}
        facts = {**example.facts, **{name: self._value(name, row) for name in self.facts}}
        if CHOICES in self.needs:
            facts[CHOICES] = _choices(facts[CHOICES])
        try:
            json.dumps(facts, allow_nan=False)
        except (TypeError, ValueError):
            names = ", ".join(self.facts) or "choices"
            raise RowError(f"more than texts, numbers and lists of them as {names}") from None
        return facts

    def _value(self, role: str, row: Mapping[str, Any]) -> Any:
        if role not in self._parts:
            return None
        parts = self._parts[role]
        value = self._together(role, [part(row) for part in parts]) if isinstance(parts, tuple) else parts(row)
        several = isinstance(value, list) and role == self.form.answer
        if several:
            value = self._answers(value) or None
        if value is None or value != value:  # nothing, or NaN, which stands for nothing in tables
            if role in self.form.optional:
                return None
            given = self.columns[role]
            if is_template(str(given)):
                raise RowError(f"no '{role}': all cells of its template are empty")
            names = [given] if isinstance(given, str) else given
            raise RowError("no " + " or ".join(f"'{name}'" for name in names))
        if several or role in self.structured:
            return value
        if isinstance(parts, Cell) and parts.keys and isinstance(row[parts.column], list) and isinstance(value, list):
            text = f"{{{{ {parts.column} | map(attribute='{'.'.join(parts.keys)}') | join(', ') }}}}"
            ways = f"`{text}` makes one text of it, `records: {parts.column}.*` a row of each item"
            raise RowError(f"no text as '{parts.path}', but a list; {ways}")
        return self._text(role, value)

    def _together(self, role: str, values: list[Any]) -> list[Any]:
        """The cells of several columns: as an answer, what is in those that are lists stands beside the others."""
        if role != self.form.answer:
            return values
        return [item for value in values for item in (value if isinstance(value, list) else [value])]

    def _answers(self, values: Sequence[Any]) -> list[str]:
        """Right answers, each once; nulls and empty texts are none."""
        texts = [self._text(self.form.answer, value) for value in values if value is not None and value == value]
        return [text for text in dict.fromkeys(texts) if text.strip()]

    def _text(self, role: str, value: Any) -> str:
        text = as_text(value)
        if text is None:
            given = str(self.columns[role])
            if isinstance(value, bytes):
                raise RowError(f"no text as '{given}', but bytes that are not UTF-8")
            if self.form.roles and _is_message(value[0] if isinstance(value, list) and value else value):
                way = f"take format messages, as in `columns: {{messages: {self.columns[self.form.roles[0]]}}}`"
                raise RowError(f"messages as '{given}', where a text is wanted; {way}")
            inner = f"({given.strip()[2:-2].strip()})" if is_template(given) else given
            way = f"`{{{{ {inner}{_WAYS.get(type(value), '')} }}}}` makes one text of it"
            raise RowError(f"no text as '{given}', but a {type(value).__name__}; {way}")
        return text


def _choices(given: Any) -> list[str]:
    """The choices of a row as texts."""
    texts = [as_text(choice) or "" for choice in given] if isinstance(given, list) else []
    if len(texts) < 2 or not all(map(str.strip, texts)):
        raise RowError("no list of two or more texts as its choices")
    return texts


def _listed(parts: Part | tuple[Part, ...]) -> tuple[Part, ...]:
    return parts if isinstance(parts, tuple) else (parts,)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and ("content" in value or "value" in value) and bool({"role", "from"} & {*value})


def _check_text(text: str) -> None:
    if len(text) > _LONGEST:
        raise RowError(f"{len(text):,} characters, more than {_LONGEST:,}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError("half of a character (a lone surrogate), which is not text") from None
