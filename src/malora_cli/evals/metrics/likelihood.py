"""How likely the right answer is: nothing is generated, and what is measured is that of the task's loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from malora_cli.evals.metrics._base import Answer, CorpusMetric
from malora_cli.recipe.settings import Kind

if TYPE_CHECKING:
    from malora_cli.results.statistics.arrays import FloatArray


class Likelihood(CorpusMetric):
    """The probability of a byte of the right answer, geometric mean over the task: comparable across tokenizers."""

    kind: ClassVar[Kind] = "likelihood"

    name: Literal["likelihood"] = "likelihood"

    def counts(self, answer: Answer) -> tuple[float, ...]:
        """Nats and bytes of the right answer that is trained."""
        return answer.reference_nats, float(len(answer.references[0].encode()))

    def value(self, sums: FloatArray) -> FloatArray:
        """``exp(-nats / bytes)``, which is 2 to the power of minus the bits a byte."""
        import numpy as np

        return np.exp(-sums[..., 0] / sums[..., 1])


METRIC = Likelihood
