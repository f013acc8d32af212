"""Whether tests can be parted from the code that they test: what they use of it has to be functions that they call."""

from __future__ import annotations

import ast
import builtins
from collections import deque
from collections.abc import Iterator

_BUILT_IN = (str, bytes, bytearray, int, float, complex, list, tuple, dict, set, frozenset, range, deque, Exception)
_ATTRIBUTES = frozenset(name for kind in _BUILT_IN for name in dir(kind))
_FAR_REACHING = {"exec", "eval", "compile", "open", "globals", "locals", "vars", "getattr", "setattr", "delattr"}
_FAR_REACHING |= {"breakpoint", "gi_frame", "cr_frame", "ag_frame", "tb_frame"}
_KIND_TESTS = ("isinstance", "issubclass")
_BINDS = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.NamedExpr, ast.For, ast.comprehension, ast.withitem)


def names_called(tests: str, given: str = "", entry: str | None = None) -> tuple[str, ...] | None:
    """Names that tests call in the code under test; None where they use it in another way, so it has to be with them.

    Args:
        tests: The tests.
        given: Code that both have, such as helpers in the question.
        entry: The function under test, where it is known.

    Raises:
        SyntaxError: The tests or what is given are not Python.
    """
    tree = ast.parse(tests)
    known = {*_bound(tree), *names_bound(given), "__name__"} - {entry}
    loaded = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - known
    # Some questions ask for a function that is called like a built-in one, such as `sum`.
    free = {name for name in loaded if name == entry or not hasattr(builtins, name)} or _called(tree) & loaded
    derived = _derived(tree, free)
    apart = not any(_reaches_in(node, free, derived) for node in ast.walk(tree))
    return tuple(sorted(free)) if apart else None


def names_bound(code: str) -> set[str]:
    """Names that a program gives something to.

    Raises:
        SyntaxError: It is not Python.
    """
    return {*_bound(ast.parse(code))}


def leaves_no_trace(tests: str) -> bool:
    """Whether an interpreter is as good as new behind tests: they can reach nothing that outlives them."""
    tree = ast.parse(tests)
    parts = [*ast.walk(tree)]
    names = {part.id for part in parts if isinstance(part, ast.Name)}
    names |= {part.attr for part in parts if isinstance(part, ast.Attribute)}
    imports = any(isinstance(part, (ast.Import, ast.ImportFrom)) for part in parts)
    return not imports and not names & _FAR_REACHING and not any(name.startswith("__") for name in names)


def _reaches_in(node: ast.AST, free: set[str], derived: set[str]) -> bool:
    """Whether tests use more of a thing of the code's than what a copy of it has."""
    if isinstance(node, ast.Attribute):
        named = isinstance(node.value, ast.Name) and node.value.id in free
        return named or (node.attr not in _ATTRIBUTES and bool(_names(node.value) & derived))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _KIND_TESTS:
        return any(_names(kinds) & free for kinds in node.args[1:])
    if isinstance(node, ast.ClassDef):
        return any(_names(base) & free for base in node.bases)
    return isinstance(node, ast.ExceptHandler) and node.type is not None and bool(_names(node.type) & free)


def _derived(tree: ast.AST, free: set[str]) -> set[str]:
    """Names that may hold what the code under test has made; all arguments of functions are among them."""
    found = free | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    binds = [_names_by_use(node) for node in ast.walk(tree) if isinstance(node, _BINDS)]
    while more := {name for loads, stores in binds if loads & found for name in stores} - found:
        found |= more
    return found


def _names_by_use(node: ast.AST) -> tuple[set[str], set[str]]:
    parts = [*ast.iter_child_nodes(node)]
    if isinstance(node, ast.For):
        parts = [node.target, node.iter]
    names = [name for part in parts for name in ast.walk(part) if isinstance(name, ast.Name)]
    stores = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    return {name.id for name in names} - stores, stores


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _called(tree: ast.AST) -> set[str]:
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {function.id for function in calls if isinstance(function, ast.Name)}


def _bound(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name
