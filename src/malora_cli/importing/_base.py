"""What a tool is that configurations are imported from, and what becomes of each of its keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from malora_cli.errors import RecipeError
from malora_cli.recipe.problems import show
from malora_cli.registry import nearest

if TYPE_CHECKING:
    from malora_cli.importing._data import Mixed, Places

Fate = Literal["carried", "approximated", "left out"]


@dataclass(frozen=True)
class Line:
    """What became of one key: a row of the table that is printed.

    Args:
        key: The key, with what it stands in: ``datasets[0].path``.
        fate: What became of it.
        detail: Where it was carried to, what differs, or why it was left out.
    """

    key: str
    fate: Fate
    detail: str


@dataclass(frozen=True)
class Said:
    """What a reader makes of a value, where it depends on the value whether it can be carried.

    Args:
        value: What stands in the recipe; None sets nothing.
        differs: What differs.
        why: Why it is left out.
    """

    value: Any = None
    differs: str = ""
    why: str = ""


def as_it_is(value: Any) -> Any:
    """Read a value of any type."""
    return value


@dataclass(frozen=True)
class Key:
    """What becomes of a key of another tool.

    Args:
        name: The key.
        to: What it is carried to: a setting of the recipe or, as ``tasks.max_rows``, of the mix; or words.
        part: Under which name rules look for it that span keys; ``to`` by default.
        read: Makes the recipe's value of the tool's. Raises `ValueError` with the rule that a value breaks.
        differs: What differs; the key is approximated then.
        why: Why it is left out.
        idle: Values with which a key that differs or is left out changes nothing.
    """

    name: str
    to: str = ""
    part: str = ""
    read: Callable[[Any], Any] = as_it_is
    differs: str = ""
    why: str = ""
    idle: Sequence[Any] = ()

    @property
    def line(self) -> Line:
        """What becomes of it as a rule."""
        return line_of(self.name, self.to, self.differs, self.why)


def line_of(key: str, to: str, differs: str = "", why: str = "") -> Line:
    """A row of the table, from what is said of a key."""
    if why:
        return Line(key, "left out", why)
    if differs:
        return Line(key, "approximated", f"{to}: {differs}" if to else differs)
    return Line(key, "carried", to)


def keys(names: str, **options: Any) -> tuple[Key, ...]:
    """Several keys of which the same becomes; ``names`` parts them with spaces."""
    return tuple(Key(name, **options) for name in names.split())


def known(*groups: Sequence[Key]) -> dict[str, Key]:
    """Keys by their names; of two with one name the later."""
    return {key.name: key for group in groups for key in group}


def by_name(*listed: Key) -> dict[str, Key]:
    """Keys by their names, each a part of its own."""
    return {key.name: replace(key, part=key.name) for key in listed}


@dataclass(frozen=True)
class Found:
    """A value that was given, and by which key."""

    key: str
    value: Any


@dataclass
class Ledger:
    """What became of every key of a file, in the order of the file.

    Args:
        tool: The tool, as people write it.
        file: The file, for messages.
    """

    tool: str
    file: Path
    lines: dict[str, Line] = field(default_factory=dict)

    def carried(self, key: str, to: str) -> None:
        """Note that a key was carried to a setting."""
        self.lines[key] = line_of(key, to)

    def approximated(self, key: str, differs: str) -> None:
        """Note that a key was carried, and what differs."""
        self.lines[key] = line_of(key, "", differs)

    def left_out(self, key: str, why: str) -> None:
        """Note that a key was left out."""
        self.lines[key] = line_of(key, "", why=why)

    def wrong(self, key: str, rule: str, fix: str | None = None) -> RecipeError:
        """What is raised where a key cannot be read."""
        return RecipeError(f"{key}: {rule}", where=str(self.file), fix=fix)

    def read(self, given: Mapping[str, Any], keys: Mapping[str, Key], inside: str = "") -> dict[str, Found]:
        """Read keys by a table of them, and note what becomes of each.

        Args:
            given: The keys and their values.
            keys: What becomes of the known ones.
            inside: What they stand in, with the dot behind it.

        Returns:
            What was given of each part.

        Raises:
            RecipeError: A value cannot be read.
        """
        found = {}
        for name, value in given.items():
            shown, key = f"{inside}{name}", keys.get(name)
            if key is None:
                near = nearest(name, keys)
                hint = f"; {near}" if near else ""
                self.left_out(shown, f"not a key of {self.tool} that is known here{hint}")
            elif value is None or value in ("", [], {}):
                self.carried(shown, "not set")
            elif (key.differs or key.why) and any(value is idle or value == idle for idle in key.idle):
                self.carried(shown, "nothing to carry: so it is here")
            else:
                said, part = self._said(key, shown, value), key.part or key.to
                if said.value is not None and part and not key.why:
                    found[part] = Found(shown, said.value)
        return found

    def _said(self, key: Key, shown: str, value: Any) -> Said:
        try:
            read = key.read(value)
        except ValueError as error:
            raise self.wrong(shown, f"got {show(value)}; {error}") from None
        said = read if isinstance(read, Said) else Said(read)
        self.lines[shown] = line_of(shown, key.to, said.differs or key.differs, said.why or key.why)
        return said


@dataclass(frozen=True)
class Tool:
    """A tool that configurations are imported from.

    Args:
        name: As people write it.
        reads: What its file is, for the help.
        load: Reads a file into its keys.
        keys: Its keys.
        row_keys: The keys of one of its datasets.
        defaults: What it does where a file says nothing, by part.
        mix: Makes the tasks, from what was found.
    """

    name: str
    reads: str
    load: Callable[[Path], dict[str, Any]]
    keys: Mapping[str, Key]
    row_keys: Mapping[str, Key]
    defaults: Mapping[str, Any]
    mix: Callable[[Mapping[str, Found], Places, Ledger], Mixed]
