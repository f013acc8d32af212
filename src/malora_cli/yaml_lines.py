"""YAML read into plain data that remembers the line of every value.

Scalars follow YAML 1.2, not the 1.1 of PyYAML's own loader: there ``2e-3`` is text, ``no`` and ``on`` are
booleans, ``1:30`` is 90 and ``010`` is 8, and a recipe that means none of that fails in odd places.

A file may come from anybody, so there are limits: a few lines of aliases of aliases stand for more values than any
machine has memory for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

#: Where a value stands in the data: keys from the root, list positions as text.
DataPath = tuple[str, ...]

#: Far beyond a mix of thousands of tasks.
MOST_BYTES, MOST_VALUES, MOST_LEVELS = 5_000_000, 500_000, 64

_TAG = "tag:yaml.org,2002:"
# In the order they are tried: a whole number is also a float. Python refuses to read endless ones.
_SCALARS = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]{1,300}|0o[0-7]{1,300}|0x[0-9a-fA-F]{1,300}", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)


class LimitError(yaml.MarkedYAMLError):
    """A document is larger, or nested deeper, than is read."""

    def __init__(self, problem: str, mark: yaml.Mark | None = None) -> None:
        super().__init__(problem=problem, problem_mark=mark)


def _too_deep(mark: yaml.Mark) -> LimitError:
    return LimitError(f"values are nested more than {MOST_LEVELS} deep", mark)


class _Loader(yaml.SafeLoader):
    """Measures what it composes as if every alias were written out, and stops where that is too much."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own shape)

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level = 0
        self._extents: dict[yaml.Node, tuple[int, int]] = {}  # values and levels of every node that is complete

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self._level += 1
        if self._level > MOST_LEVELS:  # before Python's own limit, which PyYAML runs into
            raise _too_deep(mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        assert node is not None
        values, levels = self._extents.setdefault(node, self._extent(node))
        if self._level + levels > MOST_LEVELS:
            raise _too_deep(mark)
        if max(values, len(self._extents)) > MOST_VALUES:
            raise LimitError(f"there are more than {MOST_VALUES:,} values, aliases written out", mark)
        return node

    def _extent(self, node: yaml.Node) -> tuple[int, int]:
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        # A part that is not complete stands inside itself; `_Builder` refuses that, with its place.
        inner = [self._extents.get(part, (1, 1)) for part in parts]
        return 1 + sum(values for values, _ in inner), 1 + max((levels for _, levels in inner), default=0)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as something else."""

    def ignore_aliases(self, data: object) -> bool:
        """Spell out what occurs twice: anchors make a file hard to read."""
        return True


for _kind, _pattern, _first in _SCALARS:
    _starts = [character.replace("\0", "") for character in _first]
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern})$"), _starts)


@dataclass(frozen=True)
class Origin:
    """Where a value was given.

    Args:
        where: ``"recipes/quickstart.yaml:12"`` or ``"command line"``.
        folder: What a relative path given there is relative to.
        override: The override as typed, for a value from the command line.
    """

    where: str
    folder: Path
    override: str | None = None


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; as text it is the line that the user reads.

    Args:
        origin: Where the value was given, or should have been.
        path: Where it is in the data.
        text: The value, the constraint and the nearest right name.
    """

    origin: Origin
    path: DataPath
    text: str

    def __str__(self) -> str:
        """``where: dotted.path: text``; for the command line the override stands as it was typed."""
        dotted = ".".join(key if key.isprintable() else repr(key) for key in self.path)
        typed = self.origin.override
        if typed is not None:
            dotted = typed if typed.partition("=")[0] == dotted else f"{typed}: {dotted}"
        return ": ".join(part for part in (self.origin.where, dotted, self.text) if part)


@dataclass
class Document:
    """Plain data, where each of its values was given, and what was wrong on the way."""

    data: Any
    origins: dict[DataPath, Origin] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def origin(self, path: DataPath) -> Origin:
        """Where the value at ``path`` was given, or else the nearest thing around it."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins[path]

    def graft(self, path: DataPath, other: Document) -> None:
        """Put another document in the place of the value at ``path``, making the mappings on the way."""
        self.prune(path)
        inner = self.data
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = other.data
        self.origins |= {path + rest: origin for rest, origin in other.origins.items()}
        self.problems += [replace(problem, path=path + problem.path) for problem in other.problems]

    def prune(self, path: DataPath) -> None:
        """Forget where the value at ``path`` and everything inside it came from."""
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]


def read_text(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
        LimitError: It is more than is read.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise LimitError(f"it has more than {MOST_BYTES:,} bytes")
    return content.decode("utf-8-sig")


def read_yaml(text: str, origin_of_line: Callable[[int], Origin]) -> Document:
    """Read one YAML document.

    Args:
        text: The document.
        origin_of_line: Origin of what stands on a line, counted from 1.

    Returns:
        The data (None for an empty text) with the origin of every value. Duplicate keys and the like are in its
        ``problems``.

    Raises:
        yaml.YAMLError: The text is no YAML.
        LimitError: It is more than is read.
    """
    node = yaml.compose(text, Loader=_Loader)
    if node is None:
        return Document(None, {(): origin_of_line(1)})
    return _Builder(origin_of_line).document(node)


def write_yaml(data: Any) -> str:
    """``data`` as YAML that any reader understands alike, in its own order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20)


class _Builder:
    """Turns the nodes of one document into plain data."""

    def __init__(self, origin_of_line: Callable[[int], Origin]) -> None:
        self._origin_of_line = origin_of_line
        self._result = Document(None)
        self._open: list[yaml.Node] = []

    def document(self, node: yaml.Node) -> Document:
        self._result.origins[()] = self._origin(node)
        self._result.data = self._value(node, ())
        return self._result

    def _origin(self, node: yaml.Node) -> Origin:
        return self._origin_of_line(node.start_mark.line + 1)

    def _problem(self, node: yaml.Node, path: DataPath, text: str) -> None:
        self._result.problems.append(Problem(self._origin(node), path, text))

    def _value(self, node: yaml.Node, path: DataPath) -> Any:
        if any(node is outer for outer in self._open):
            self._problem(node, path, "an alias stands inside what it repeats; write it out")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._open.append(node)
        value = self._mapping(node, path) if isinstance(node, yaml.MappingNode) else self._list(node, path)
        self._open.pop()
        return value

    def _scalar(self, node: yaml.ScalarNode, path: DataPath) -> Any:
        match node.tag.removeprefix(_TAG), node.value:
            case (("str" | "merge"), text):
                return text
            case "null", _:
                return None
            case "bool", text:
                return text.lower() == "true"
            case "int", text:
                return int(text, 0 if text[:2] in ("0x", "0o") else 10)
            case "float", text:
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        self._problem(node, path, f"got the tag {node.tag}; recipes have plain values only; drop the tag")
        return None

    def _list(self, node: yaml.Node, path: DataPath) -> list[Any]:
        values = []
        for position, item in enumerate(node.value):
            inner = (*path, str(position))
            self._result.origins[inner] = self._origin(item)
            values.append(self._value(item, inner))
        return values

    def _mapping(self, node: yaml.MappingNode, path: DataPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                continue
            key = self._key(key_node, path)
            if key in lines:
                first = f"line {lines[key]}"
                self._problem(key_node, (*path, key), f"given twice, first on {first}; keep one")
            elif key is not None:
                lines[key] = key_node.start_mark.line + 1
                values[key] = self._entry(key_node, value_node, (*path, key))
        for key_node, value_node in self._merged(node, path):
            key = self._key(key_node, path)
            if key is not None and key not in values:
                values[key] = self._entry(key_node, value_node, (*path, key))
        return values

    def _entry(self, key_node: yaml.Node, value_node: yaml.Node, path: DataPath) -> Any:
        self._result.origins[path] = self._origin(key_node)
        return self._value(value_node, path)

    def _key(self, node: yaml.Node, path: DataPath) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "str":
            return str(node.value)
        shown = node.value if isinstance(node, yaml.ScalarNode) else "a list or mapping"
        self._problem(node, path, f"got the key {shown}; keys are text; put it in quotes")
        return None

    def _merged(self, node: yaml.MappingNode, path: DataPath) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """What ``<<: *anchor`` brings into a mapping, nearest first."""
        for key_node, value_node in node.value:
            if key_node.tag != _TAG + "merge":
                continue
            sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for source in sources:
                if not isinstance(source, yaml.MappingNode) or any(source is outer for outer in self._open):
                    self._problem(key_node, path, "<< takes a mapping or a list of them")
                    continue
                yield from ((k, v) for k, v in source.value if k.tag != _TAG + "merge")
                self._open.append(source)
                yield from self._merged(source, path)
                self._open.pop()
