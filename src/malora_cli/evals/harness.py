"""Tasks of lm-evaluation-harness beside our own: the same tables, intervals and paired tests."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from malora_cli.data.batch import TrainExample
from malora_cli.data.encoding import Encoder
from malora_cli.errors import RecipeError
from malora_cli.evals.choosing import LM_EVAL
from malora_cli.evals.examine import Progress
from malora_cli.evals.lm_eval import LmEvalTask, check_installed, lm_eval_task
from malora_cli.evals.metrics._base import Answer, Mark, Metric
from malora_cli.evals.questions import Question
from malora_cli.evals.scoring import Scored
from malora_cli.evals.subject import Subject
from malora_cli.recipe.settings import Kind


class _Theirs(Metric):
    """A metric that the harness has applied."""

    kind: ClassVar[Kind] = "generation"

    def marks(self, answers: Sequence[Answer]) -> list[Mark]:
        """None: the harness has marked them.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Harness:
    """What is asked of the harness.

    Args:
        names: Its tasks, as a user names them: ``lm_eval:NAME``.
        limit: Rows of each at most.
        batch_size: Rows that go through the model at once.
        system: System prompt of the rows.

    Raises:
        RunError: The harness is not installed.
    """

    names: Collection[str]
    limit: int | None
    batch_size: int
    system: str | None

    def __post_init__(self) -> None:
        for name in self.names:
            check_installed(name)

    def scored(self, subject: Subject, encoder: Encoder, progress: Progress, *, shots: int | None) -> dict[str, Scored]:
        """Every task under a model.

        Args:
            subject: The model.
            encoder: Its encoder.
            progress: Is told how far it has come.
            shots: Solved rows in front of each prompt; None is as many as the task has.

        Raises:
            MaloraError: As of `lm_eval_task`; or a task has no metric that is a mean over rows.
        """
        found: dict[str, Scored] = {}
        for name in self.names:
            progress.begin(subject.name, name, self.limit or 1)
            with subject.asked() as model:
                tasks = self._asked(name, model, encoder, shots)
            found |= {f"{LM_EVAL}{task.name}": _scored(task, name) for task in tasks}
            progress.answered(self.limit or 1)
        return found

    def _asked(self, name: str, model: Any, encoder: Encoder, shots: int | None) -> list[LmEvalTask]:
        return lm_eval_task(
            name.removeprefix(LM_EVAL),
            model,
            encoder,
            limit=self.limit,
            batch_size=self.batch_size,
            shots=shots,
            system=self.system,
        )


def _scored(task: LmEvalTask, where: str) -> Scored:
    """A task of the harness by its first metric."""
    if not task.marks:
        raise RecipeError(
            f"lm-eval scores '{task.name}' by {', '.join(task.values)}, and none of these is a mean over rows",
            where=where,
            fix="Take a task with another metric, or lm-eval itself.",
        )
    metric, marks = next(iter(task.marks.items()))
    questions = [
        Question(row, answer.prompt, list(answer.references), answer.facts, TrainExample([], [], 0), [])
        for row, answer in zip(task.rows, task.answers, strict=True)
    ]
    return Scored(_Theirs(name=metric), questions, task.answers, marks, ())
