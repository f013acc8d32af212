"""Names to things, found by looking into a package: one file each, nothing else to edit."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Generic, TypeVar

T = TypeVar("T")

#: Characters of a list of names in a line that is meant to be read.
_LONGEST_LIST = 120


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """``"did you mean 'x'?"`` for the nearest known name; nothing when none is near."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)
    return f"did you mean '{near[0]}'?" if near else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """As `nearest`, or the list of what is known when none is near."""
    names = sorted(known)
    return nearest(name, names) or f"known: {_listed(names, name)}"


def _listed(names: Sequence[str], name: str) -> str:
    """All of the names; where they would fill a screen, those that are most like ``name``."""
    text = ", ".join(names)
    if len(text) <= _LONGEST_LIST:
        return text
    by_likeness = sorted(names, key=lambda it: -difflib.SequenceMatcher(None, name, it).ratio())
    shown = f"{', '.join(by_likeness)}, "[:_LONGEST_LIST].rpartition(", ")[0]
    return f"{shown}, … ({len(names)} in all)"


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """``"unknown task 'ad'; did you mean 'add'?"``."""
    return f"unknown {kind} '{name}'; {did_you_mean(name, known)}"


class Registry(Mapping[str, T], Generic[T]):
    """The things that the modules of one package offer, each under a name.

    Args:
        kind: What is registered, for messages, such as ``"metric"``.
        package: Dotted name of the package whose modules are looked through.
        attribute: Name of the module attribute that holds the thing; modules without it are passed over. The
            thing is known by its module's name with ``_`` as ``-``.
    """

    def __init__(self, kind: str, package: str, attribute: str) -> None:
        self.kind, self._package, self._attribute = kind, package, attribute

    @cached_property
    def _things(self) -> dict[str, T]:
        package = importlib.import_module(self._package)
        things: dict[str, T] = {}
        for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
            thing = getattr(importlib.import_module(f"{self._package}.{info.name}"), self._attribute, None)
            if thing is not None:
                things[info.name.replace("_", "-")] = thing
        return things

    def __getitem__(self, name: str) -> T:
        try:
            return self._things[name]
        except KeyError:
            raise KeyError(unknown(self.kind, name, self._things)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)
