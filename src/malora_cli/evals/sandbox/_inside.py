"""The two ends of the pipe, each in an interpreter of its own: the candidate has the code, the checker has the tests.

A call crosses as the literal of exact built-in types: what the candidate makes up, such as an object that is equal to
everything, never comes to where it is compared. What has no literal but is built in, such as ``nan`` or a range, is a
tuple that begins with a mark. An object of the candidate's own class stays where it is: the checker holds a number
that it can hand back in a later call, and do nothing else with.

This file is run as it stands behind the boundary, so it needs nothing but the standard library, and little of it.
"""

from __future__ import annotations

import builtins
import io
import os
import sys

TYPE_CHECKING = False  # typing itself takes longer to import than the interpreter to start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

MOST_CHARACTERS = 1_000_000  # of one line
MOST_OUTPUT = 65_536
MOST_ITEMS = 100_000  # of an iterator
MARK = "\0"

_VIEWS: dict[type, str] = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}
_MAKE: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "complex": lambda parts: complex(*parts),
    "tuple": lambda rest: (MARK, *rest),
    "range": lambda ends: range(*ends),
    "frozenset": frozenset,
    "bytearray": bytearray,
    "iterator": iter,
    "keys": lambda keys: dict.fromkeys(keys).keys(),
    "values": lambda values: dict(enumerate(values)).values(),
    "items": lambda items: dict(items).items(),
}


class UnsendableError(BaseException):
    """A value of the tests has no literal, such as a function; no test that expects exceptions may take it for one."""


def encode(value: Any, other: Callable[[Any], Any]) -> Any:
    """A value as literals can hold it; what is of no built-in type becomes what ``other`` makes of it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (int, bytes)):
        return int(value) if isinstance(value, int) else bytes(value)
    if isinstance(value, float):
        return float(value) if abs(value) < float("inf") else (MARK, "float", repr(float(value)))
    if isinstance(value, complex):
        return (MARK, "complex", (encode(value.real, other), encode(value.imag, other)))
    if isinstance(value, dict):
        return {encode(key, other): encode(item, other) for key, item in value.items()}
    if isinstance(value, list):
        return [encode(item, other) for item in value]
    if isinstance(value, set):
        return {encode(item, other) for item in value}
    if isinstance(value, tuple):
        if value and encode(value[0], other) == MARK:
            return (MARK, "tuple", encode(value[1:], other))
        return tuple(encode(item, other) for item in value)
    return _encode_rare(value, other)


def _encode_rare(value: Any, other: Callable[[Any], Any]) -> Any:
    def marked(name: str, items: Iterable[Any]) -> Any:
        return (MARK, name, tuple(encode(item, other) for item in items))

    if isinstance(value, range):
        return (MARK, "range", (value.start, value.stop, value.step))
    if isinstance(value, frozenset):
        return marked("frozenset", value)
    if isinstance(value, bytearray):
        return (MARK, "bytearray", bytes(value))
    if type(value) in _VIEWS:
        return marked(_VIEWS[type(value)], value)
    if hasattr(type(value), "__next__"):
        items = [item for _, item in zip(range(MOST_ITEMS + 1), value)]  # noqa: B905
        if len(items) > MOST_ITEMS:
            raise ValueError(f"an iterator of more than {MOST_ITEMS:,} items")
        return marked("iterator", items)
    return other(value)


def decode(value: Any, kept: Callable[[int], Any]) -> Any:
    """The value that `encode` was given; ``kept`` tells what a number stands for."""
    if type(value) is tuple:
        if value[:1] != (MARK,):
            return tuple(decode(item, kept) for item in value)
        _, name, held = value
        return kept(held) if name == "kept" else _MAKE[name](decode(held, kept))
    if type(value) is list:
        return [decode(item, kept) for item in value]
    if type(value) is set:
        return {decode(item, kept) for item in value}
    if type(value) is dict:
        return {decode(key, kept): decode(item, kept) for key, item in value.items()}
    return value


class Opaque:
    """An object that the candidate keeps: it can be handed back in a call, and nothing else."""

    def __init__(self, number: int) -> None:
        self.number = number

    def _refuse(self, *_: Any) -> Any:
        raise TypeError("the answer gave an object of its own class, which cannot be compared")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __len__ = __iter__ = __call__ = _refuse
    __hash__ = __contains__ = __getitem__ = __getattr__ = __int__ = __float__ = __str__ = __repr__ = _refuse


class Line:
    """The pipe: one literal a line, while what the program prints goes nowhere."""

    def __init__(self) -> None:
        self._stdin, self._outward = sys.stdin, os.fdopen(os.dup(1), "wb")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        sys.stdin = io.StringIO()
        sys.stdout = sys.stderr = _Muted()
        sys.set_int_max_str_digits(0)

    def send(self, *message: Any) -> None:
        text = ascii(message)
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"a value of more than {MOST_CHARACTERS:,} characters")
        self._outward.write(text.encode() + b"\n")
        self._outward.flush()

    def receive(self) -> str:
        line = self._stdin.buffer.readline()
        if not line:
            os._exit(0)  # nobody asks any more
        return line.decode()


class _Muted(io.TextIOBase):
    """Where prints go: nowhere, up to a limit."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, text: str) -> int:
        self.written += len(text)
        if self.written > MOST_OUTPUT:
            raise PermissionError(f"more than {MOST_OUTPUT:,} characters of output")
        return len(text)


def error_of(error: BaseException) -> tuple[str, str]:
    """The nearest built-in exception, and what it says."""
    kinds = (kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind)
    name = next(kinds, "RuntimeError")
    # A network that is not there is as much a boundary as a permission that is not given.
    if isinstance(error, OSError) and (type(error).__name__ == "gaierror" or error.errno in (101, 51)):
        name = "PermissionError"
    try:
        return name, str(error)[:200]
    except Exception:
        return name, ""


def candidate(line: Line, code: str) -> None:
    """Load the code, then answer calls of its functions."""
    module = type(sys)("answer")
    sys.modules["answer"] = module
    try:
        exec(compile(code, "answer.py", "exec"), module.__dict__)
    except BaseException as error:
        line.send("raised", *error_of(error))
        return
    line.send("ready")
    kept: list[Any] = []

    def keep(value: Any) -> Any:
        kept.append(value)
        return (MARK, "kept", len(kept) - 1)

    while True:
        _, name, args, named = _eval(line.receive())
        try:
            values = decode(args, kept.__getitem__)
            value = module.__dict__[name](*values, **decode(named, kept.__getitem__))
            changed = {
                place: after
                for place, (before, given) in enumerate(zip(args, values, strict=True))
                if isinstance(given, (list, dict, set, bytearray)) and (after := encode(given, keep)) != before
            }
            line.send("returned", encode(value, keep), changed)
        except BaseException as error:
            if isinstance(error, KeyError) and name not in module.__dict__:
                error = NameError(f"name '{name}' is not defined")
            line.send("raised", *error_of(error))


def checker(line: Line, prompt: str, tests: str, names: tuple[str, ...], word: str) -> None:
    """Run the tests against functions that are elsewhere; the word is said where all of them hold."""
    space: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(prompt, "prompt.py", "exec"), space)
        space |= {name: _remote(line, name) for name in names}
        exec(compile(tests, "tests.py", "exec"), space)
        line.send("passed", word)
    except UnsendableError:
        line.send("together")
    except BaseException as error:
        line.send("failed", *error_of(error))


def together(line: Line, code: str) -> None:
    """Code and tests in one interpreter, where the tests need what no pipe can carry."""
    module = type(sys)("answer")
    sys.modules["answer"] = module
    run, read = exec, compile  # before the code can put others in their place
    try:
        run(read(code, "answer.py", "exec"), module.__dict__)
        line.send("ready")
        tests, word = _eval(line.receive())
        run(read(tests, "tests.py", "exec"), module.__dict__)
        line.send("passed", word)
    except BaseException as error:
        line.send("failed", *error_of(error))


def _remote(line: Line, name: str) -> Callable[..., Any]:
    def other(value: Any) -> Any:
        if isinstance(value, Opaque):
            return (MARK, "kept", value.number)
        raise UnsendableError(f"the tests call {name} with a value of type {type(value).__name__}")

    def call(*args: Any, **named: Any) -> Any:
        line.send("call", name, encode(args, other), encode(named, other))
        reply = _eval(line.receive())
        if reply[0] == "raised":
            kind = getattr(builtins, str(reply[1]), None)
            raise (kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError)(reply[2])
        _, value, changed = reply
        for place, after in changed.items():
            _put(args[place], decode(after, Opaque))
        return decode(value, Opaque)

    return call


def _put(given: Any, after: Any) -> None:
    """Make of an argument what the call made of it."""
    if isinstance(given, (dict, set)):
        given.clear()
        given.update(after)
    else:
        given[:] = after


def _eval(text: str) -> Any:
    """A literal: the keeper between the two lets nothing else through."""
    return eval(text, {"__builtins__": {}, "set": set})


def run() -> None:
    """Play the part that is asked for; only a checker is asked again."""
    parts: dict[str, Callable[..., None]] = {"candidate": candidate, "checker": checker, "together": together}
    line, role = Line(), "checker"
    while role == "checker":
        role, *rest = _eval(line.receive())
        parts[role](line, *rest)
    os._exit(0)
