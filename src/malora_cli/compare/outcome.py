"""What became of the runs of a comparison; light, since runs that exist are compared without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from malora_cli.errors import RunError
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


class UnlikeError(RunError):
    """Runs of a comparison do not stand on the same rows or the same base model."""


def check_same_base(first: RunRecord, other: RunRecord) -> None:
    """Make sure that two runs stand on one base model, which may be another one by now under the same name.

    Raises:
        UnlikeError: They do not.
    """
    one, two = first.manifest, other.manifest
    if (one.base_model_sha256, one.base_model_commit) != (two.base_model_sha256, two.base_model_commit):
        raise UnlikeError(
            f"it was trained on another '{two.base_model}' than {first.path} was",
            where=str(other.path),
            fix="Put the base model back or set model.revision, and train one of them again.",
        )


def check_same_rows(records: Sequence[RunRecord]) -> None:
    """Make sure that all runs had the same rows: training, validation and test rows, by their hashes.

    Raises:
        UnlikeError: One did not.
    """
    for record in records[1:]:
        for which in ("train_data", "validation_data", "test_data"):
            one, two = (
                {name: data.sha256 for name, data in getattr(run.manifest, which).items()}
                for run in (records[0], record)
            )
            if one != two:
                raise UnlikeError(
                    f"its {which.partition('_')[0]} rows are not those of {records[0].path}",
                    where=str(record.path),
                    fix="Put the data back, and train one of them again.",
                )
