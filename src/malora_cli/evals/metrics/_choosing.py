"""Choosing the most likely of the choices of a row, whose tokens are weighed behind the prompt that training shows.

A choice's nats are its negative log-likelihood, the mark that ends the turn left out, as by lm-evaluation-harness and
OLMES (Gu et al., arXiv 2406.08446). Of choices that are equally likely the first is taken, as there.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from malora_cli.evals.metrics._base import Answer, Mark, Metric
from malora_cli.recipe.settings import Kind


class Choosing(Metric):
    """1 where the choice of the fewest nats is right."""

    kind: ClassVar[Kind] = "choices"
    needs: ClassVar[tuple[str, ...]] = ("choices",)
    needs_prior: ClassVar[bool] = False

    @abstractmethod
    def weights(self, answer: Answer) -> Sequence[float]:
        """The nats of each choice as they are compared."""

    def chosen(self, answer: Answer) -> str:
        """The most likely choice."""
        weights = self.weights(answer)
        return str(answer.facts["choices"][min(range(len(weights)), key=weights.__getitem__)])

    def marks(self, answers: Sequence[Answer]) -> list[Mark]:
        """Whether the choice of each is right."""
        return [Mark.of(float(self._is_right(answer))) for answer in answers]

    def _is_right(self, answer: Answer) -> bool:
        return self.chosen(answer).strip() in map(str.strip, answer.references)
