"""Pass@k of generated code: whether it passes the row's tests, run in a sandbox.

A model answers once, greedily, so that k is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from malora_cli.errors import DataError
from malora_cli.evals.code import code_of, job_of
from malora_cli.evals.metrics._base import Answer, Mark, Metric
from malora_cli.evals.sandbox import Job, Outcome, open_sandbox


class PassAtK(Metric):
    """The share of answers whose code passes the tests of their row."""

    needs: ClassVar[tuple[str, ...]] = ("tests",)
    wants: ClassVar[tuple[str, ...]] = ("entry_point", "stub")
    runs_code: ClassVar[bool] = True

    name: Literal["pass-at-k"] = "pass-at-k"

    def marks(self, answers: Sequence[Answer]) -> list[Mark]:
        """1 for each that passes; the code of all is tried in one sandbox.

        Raises:
            RunError: No sandbox works here.
            DataError: The tests of a row are no program.
        """
        jobs = [_job(answer) for answer in answers]
        with open_sandbox() as sandbox:
            outcomes = iter(sandbox.run([job for job in jobs if job is not None]))
        return [_NO_CODE if job is None else _mark(next(outcomes), sandbox.backend) for job in jobs]


_NO_CODE = Mark.of(0.0, unread=True, outcome="no code")


def _mark(outcome: Outcome, backend: str) -> Mark:
    return Mark.of(pass_at_k(1, outcome.passed, 1), outcome=f"{outcome} in {backend}")


def _job(answer: Answer) -> Job | None:
    tests, entry, stub = answer.facts["tests"], answer.facts.get("entry_point"), answer.facts.get("stub") or ""
    code = code_of(answer.text, stub, entry)
    try:
        return job_of(code or "", tests, stub, entry) if code is not None else None
    except (SyntaxError, TypeError, ValueError) as error:
        raise DataError(
            f"these tests are not a Python program ({error}): {str(tests)[:60]!r}",
            fix="They are one text, or a list of statements such as `assert f(1) == 2`.",
        ) from None


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """How likely one of ``k`` answers passes, without bias, from how many of a greater number did.

    Raises:
        ValueError: There are fewer samples than ``k``.

    Source: Chen et al. 2021 (arXiv 2107.03374), Eq. 1.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} answers to each question, and there are {samples}")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


METRIC = PassAtK
