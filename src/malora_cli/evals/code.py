"""The code in an answer, and what a sandbox is asked of it."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence

from malora_cli.evals.sandbox import Job
from malora_cli.evals.sandbox._parting import names_bound, names_called

_FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.DOTALL | re.MULTILINE)
_LANGUAGES = ("", "python", "python3", "py", "py3")
_BEGINS = re.compile(r"(?:async\s+def|def|class|import|from|@|[A-Za-z_]\w*\s*(?::[^=\n]+)?=(?!=))")
#: Lines at which code may end; answers that go on for longer are read up to here.
_MOST_LINES, _MOST_STARTS = 400, 20


def code_of(answer: str, stub: str = "", entry: str | None = None) -> str | None:
    """The program that an answer gives; None where it has no code.

    Code is taken out of its fence, or from among the sentences around it. What only goes on from the stub, such as the
    body of its function, is put behind it.

    Args:
        answer: What the model said.
        stub: Code that the question ends with, whose function is to be completed.
        entry: The function that is asked for.
    """
    fences = [code for _, language, code in _FENCED.findall(answer) if language.lower() in _LANGUAGES]
    texts = sorted(fences, key=lambda code: not _defines(code, entry)) if fences else [answer]
    for text in texts:
        if (code := _program(text, stub, entry)) is not None:
            return code
    # Code that cannot be read is a wrong answer, while sentences are none.
    looks = fences or re.search(r"^\s*(?:def|class|return|import|from|for|while|if)\b.*[:\w)\]]$", answer, re.MULTILINE)
    return f"{stub}\n{texts[0]}" if looks and texts[0].strip() else None


def job_of(code: str, tests: str | Sequence[str], stub: str = "", entry: str | None = None) -> Job:
    """What a sandbox is asked of a program.

    Args:
        code: The program.
        tests: A program that raises unless it is right, or several; where it defines ``check``, that is called with
            the function that is asked for.
        stub: Code of the question, which the tests may use.
        entry: The function that is asked for.

    Raises:
        SyntaxError: The tests are not Python.
    """
    text = tests if isinstance(tests, str) else "\n".join(tests)
    if entry is not None and "check" in names_bound(text):
        text = f"{text}\ncheck({entry})\n"
    given = _whole(stub) if entry is not None else ""  # which of its functions is the one asked for cannot be told
    names = names_called(text, given, entry)
    helpers = names_bound(given) - {entry}
    uses = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    return Job(code, text, names, given if uses & helpers else "")


def _program(text: str, stub: str, entry: str | None) -> str | None:
    """The program that a text stands for, alone or behind the stub; lines around it that are no code aside."""
    if stub and not _defines(text, entry):
        body = text.strip("\n")
        shifted = [f"    {body}", re.sub(r"^(?=.)", "    ", body, flags=re.MULTILINE)]
        bodies = [body] if body[:1].isspace() else shifted  # some models leave out the indentation
        if found := [code for body in bodies if (code := _longest(f"{stub.rstrip()}\n", body)) is not None]:
            return max(found, key=len)
    head = f"{_whole(stub)}\n" if stub else ""
    if _parses(head + text):
        return head + text
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if _BEGINS.match(line)][:_MOST_STARTS]
    programs = (_longest(head, "\n".join(lines[start:])) for start in starts)
    return next((code for code in programs if code is not None), None)


def _longest(head: str, text: str) -> str | None:
    """A text behind a head, without as few of its last lines as makes it a program."""
    lines = text.splitlines()[:_MOST_LINES]
    ends = (end for end in range(len(lines), 0, -1) if lines[end - 1].strip())
    programs = (head + "\n".join(lines[:end]) + "\n" for end in ends)
    return next(filter(_parses, programs), None)


def _whole(stub: str) -> str:
    """A stub as a program: a function without a body, and without a docstring, gets one that does nothing."""
    return next((code for code in (stub, f"{stub.rstrip()}\n    pass\n") if _parses(code)), "")


def _defines(code: str, entry: str | None) -> bool:
    name = re.escape(entry) if entry else r"\w+"
    return re.search(rf"^(?:async\s+)?(?:def|class)\s+{name}\b|^{name}\s*=(?!=)", code, re.MULTILINE) is not None


def _parses(code: str) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(code, "answer.py", "exec", dont_inherit=True)
        return bool(code.strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
