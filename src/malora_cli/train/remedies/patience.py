"""An end for each task of its own: one that has learned what it will is no longer drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from malora_cli.recipe import RemedySettings
from malora_cli.recipe.settings import Count
from malora_cli.results import EvalEvent, stopped
from malora_cli.train.remedies._base import Remedy


class PatienceSettings(RemedySettings):
    """An end for each task: no longer drawn once its validation loss has had no new low for some evaluations."""

    changes_shares: ClassVar[bool] = True
    goes_by_evaluations: ClassVar[bool] = True

    evaluations: Count = Field(
        default=3, description="Evaluations in a row without a new low after which a task is no longer drawn"
    )

    def sentence(self) -> str:
        """What it does, as the report says it."""
        count = self.evaluations
        evaluations = "an evaluation" if count == 1 else f"{count} evaluations in a row"
        return f"A task is no longer drawn after {evaluations} without a new low of its validation loss."


class Patience(Remedy[PatienceSettings]):
    """Early stopping, by task."""

    Settings = PatienceSettings

    def stopped(self, evals: Sequence[EvalEvent]) -> set[str]:
        """Tasks that have waited as long as they may."""
        return stopped(evals, self.settings.evaluations)


REMEDY = Patience
