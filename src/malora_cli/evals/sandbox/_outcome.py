"""What is asked of a sandbox, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["passed", "failed", "timeout", "memory", "crashed", "blocked"]


@dataclass(frozen=True)
class Job:
    """One answer and the tests that it has to pass.

    Args:
        code: All of the answer's code.
        tests: A program that raises unless the code is right.
        names: Functions that the tests call in the code; None where code and tests cannot be parted.
        prompt: Code that the tests may use as well, such as helpers that the question gives.
    """

    code: str
    tests: str
    names: tuple[str, ...] | None
    prompt: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of one answer.

    Args:
        kind: ``passed``, or why not.
        reason: What was raised, in a line.
        together: Whether code and tests ran in one interpreter, where code can see the tests.
    """

    kind: Kind
    reason: str = ""
    together: bool = False

    @property
    def passed(self) -> bool:
        """Whether the tests hold."""
        return self.kind == "passed"

    def __str__(self) -> str:
        return f"{self.kind}{' (with its tests)' if self.together else ''}"
