"""Jinja templates over the cells of a row: nothing of Python is reached from one, and each comes to an end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

from jinja2 import ChainableUndefined, StrictUndefined, nodes, pass_eval_context
from jinja2.environment import TemplateExpression
from jinja2.filters import do_float, do_int, do_join
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from malora_cli.data.cells import json_value

#: What stands for all columns of a row.
ROW = "row"
#: Rounds of loops, and calls, within one row.
_STEPS = 100_000
#: Characters, items or bits of what `*` and `**` make.
_LARGEST = 10_000_000


class Null(ChainableUndefined):
    """A null cell: no text where it is shown, no field or method has more to say, and no number can be made of it."""

    __slots__ = ()

    def __call__(self, *arguments: Any, **options: Any) -> Null:  # type: ignore[override]
        """What a method of it returns, as in ``cell.strip()``."""
        return self

    def __eq__(self, other: object) -> bool:
        return other is None or other == "" or isinstance(other, Null)

    __hash__ = ChainableUndefined.__hash__

    def __repr__(self) -> str:
        return "null"


#: Filters and tests that a template says with what becomes of nulls.
_FOR_NULLS = frozenset({"default", "d", "none", "defined", "undefined"})
_NULL = Null("a null cell, of which no number can be made")


def _is_null(value: object) -> bool:
    return value is None or isinstance(value, Null)


@pass_eval_context
def _join(context: EvalContext, items: Iterable[Any], *arguments: Any, **options: Any) -> str:
    return do_join(context, (item for item in items if not _is_null(item)), *arguments, **options)


def _to_json(value: Any, indent: int | None = None) -> str:
    """As the chat templates of models have it: for people and models to read, where Jinja's own is for web pages."""
    return json.dumps(value, ensure_ascii=False, indent=indent, default=_from_null)


def _from_json(value: Any) -> Any:
    """What a text that is JSON stands for, as some data have lists and objects."""
    return value if _is_null(value) else _to_nulls(json_value(str(value)))


def _int(value: Any, default: Any = None, base: int = 10) -> Any:
    return _number(value, do_int(value, default, base))


def _float(value: Any, default: Any = None) -> Any:
    return _number(value, do_float(value, default))


def _number(value: Any, found: Any) -> Any:
    """The number that was found; Jinja's own filters make 0 of what is none."""
    if found is None:
        raise ValueError(f"'{str(value)[:40]}' is not a number")
    return found


def _from_null(value: object) -> None:
    if not _is_null(value):
        raise TypeError(f"a {type(value).__name__} is not JSON")


def _to_nulls(value: Any) -> Any:
    if value is None or value != value:  # or NaN
        return _NULL
    if isinstance(value, list):
        return [_to_nulls(item) for item in value]
    return {key: _to_nulls(item) for key, item in value.items()} if isinstance(value, dict) else value


def _names(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a template may name: the columns, and all of them under one name, for those that are no name of Jinja."""
    cells = {column: _to_nulls(cell) for column, cell in row.items()}
    return {ROW: cells, **cells}


def _from_nulls(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_from_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: _from_nulls(item) for key, item in value.items()}
    return None if _is_null(value) else value


class Templates(ImmutableSandboxedEnvironment):
    """Where the templates of a mix are compiled; a step too many of one is an `OverflowError`."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True, finalize=self._shown)
        del self.globals["lipsum"]  # which goes on for as long as it is told to
        self.filters |= {"int": _int, "float": _float, "join": _join, "tojson": _to_json, "fromjson": _from_json}
        self.filters["counted"] = self._counted
        self.tests["none"] = _is_null
        self._left = _STEPS
        self._nulls: list[bool] = []  # of what is shown, whether it is null

    def compiled(self, text: str) -> Callable[[Mapping[str, Any]], str]:
        """What fills a template with the cells of a row.

        Raises:
            TemplateSyntaxError: The text is no template.
        """
        template = self.from_string(self._counting(self.parse(text)))

        def filled(row: Mapping[str, Any]) -> str:
            self._begin()
            return template.render(_names(row))

        return filled

    def expression(self, text: str) -> Callable[[Mapping[str, Any]], Any] | None:
        """What finds the value of a template that is one expression, as ``{{ choices[:4] }}`` is; None for another.

        Raises:
            TemplateSyntaxError: The text is no template.
        """
        body = self._counting(self.parse(text.strip())).body
        shown = body[0].nodes if len(body) == 1 and isinstance(body[0], nodes.Output) else []
        if len(shown) != 1 or isinstance(shown[0], nodes.TemplateData):
            return None
        result = nodes.Assign(nodes.Name("result", "store"), shown[0], lineno=1)
        value = TemplateExpression(self.from_string(nodes.Template([result], lineno=1)), undefined_to_none=False)

        def found(row: Mapping[str, Any]) -> Any:
            self._begin()
            result = value(_names(row))
            if isinstance(result, StrictUndefined):
                str(result)  # which says what is missing
            return _from_nulls(result)

        return found

    @property
    def showed_nulls_only(self) -> bool:
        """Whether the template that was filled last had cells to show, and all were null."""
        return bool(self._nulls) and all(self._nulls)

    def minds_nulls(self, text: str) -> bool:
        """Whether a template says what becomes of nulls."""
        tree = self.parse(text)
        named = [node.name for node in tree.find_all((nodes.Filter, nodes.Test))]
        nothing = [node for node in tree.find_all(nodes.Const) if node.value is None]
        return bool(nothing or tree.find(nodes.Or) or _FOR_NULLS.intersection(named))

    def _counting(self, tree: nodes.Template) -> nodes.Template:
        """The tree of a template, its loops counted."""
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None)
        return tree

    def _begin(self) -> None:
        """Begin with another row."""
        self._left = _STEPS
        self._nulls.clear()

    def _shown(self, value: Any) -> Any:
        if isinstance(value, bytes):
            raise TypeError("bytes that are not UTF-8")
        self._nulls.append(_is_null(value))
        return "" if value is None else value

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
        return _NULL if found is None else found

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
