"""What became of the runs of a comparison; light, since runs that exist are compared without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from malora_cli.results import EvalResult, RunRecord
from malora_cli.results.comparison import Failure


class Evaluated(NamedTuple):
    """A finished run with its newest evaluation of all tasks."""

    method: str
    seed: int
    record: RunRecord
    result: EvalResult
    file: Path
    task: str | None = None  # that it was trained on alone


@dataclass
class Outcome:
    """What became of the runs of a comparison."""

    evaluated: list[Evaluated] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
