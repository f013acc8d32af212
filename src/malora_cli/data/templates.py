"""Jinja templates over the cells of a row: nothing of Python is reached from one, and each comes to an end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from itertools import islice
from typing import Any

from jinja2 import StrictUndefined, Template, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Rounds of loops, and calls, within one row.
_STEPS = 100_000
#: Characters, items or bits of what `*` and `**` make.
_LARGEST = 10_000_000


class Templates(ImmutableSandboxedEnvironment):
    """Where the templates of a mix are compiled; a step too many of one is an `OverflowError`."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True)
        del self.globals["lipsum"]  # which goes on for as long as it is told to
        self.filters["counted"] = self._counted
        self._left = _STEPS

    def compiled(self, text: str) -> Template:
        """A template whose loops are counted."""
        tree = self.parse(text)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None)
        return self.from_string(tree)

    def begin(self) -> None:
        """Count anew, as for another row."""
        self._left = _STEPS

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise OverflowError(f"it takes more than {_STEPS:,} steps")

    def _counted(self, items: Iterable[Any]) -> Iterable[Any]:
        found = items if isinstance(items, Sized) else list(islice(items, self._left + 1))
        self._spend(len(found))
        return found

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call, counted; so are the numbers of a range, which a filter may go through."""
        self._spend(1)
        found = super().call(context, called, *args, **kwargs)
        if isinstance(found, range):
            self._spend(len(found))
        return found

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """A product or a power, where it is of a size that texts and numbers in them have."""
        if operator == "**":
            size = _size(left) * right if isinstance(right, int) else 0
        else:
            size = _size(left) + _size(right)
            for one, other in ((left, right), (right, left)):
                if isinstance(one, Sequence) and isinstance(other, int):
                    size = len(one) * other
        if size > _LARGEST:
            raise OverflowError(f"what {operator} makes is too large")
        return super().call_binop(context, operator, left, right)


def _size(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0
