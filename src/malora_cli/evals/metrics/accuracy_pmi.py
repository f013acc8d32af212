"""Accuracy by pointwise mutual information: 1 where the choice that the question makes most likelier is right.

What a choice has without the question, behind "Answer:", is taken from what it has behind it (Holtzman et al., Surface
Form Competition, arXiv 2104.08315; lm-evaluation-harness's `acc_mutual_info`, which puts nothing there).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from malora_cli.evals.metrics._base import Answer
from malora_cli.evals.metrics._choosing import Choosing


class AccuracyPmi(Choosing):
    """Choices are compared by their nats beyond those without the question, so that common ones are not favoured."""

    needs_prior: ClassVar[bool] = True

    name: Literal["accuracy-pmi"] = "accuracy-pmi"

    def weights(self, answer: Answer) -> Sequence[float]:
        """The nats beyond those without the question."""
        return [nats - prior for nats, prior in zip(answer.nats, answer.prior_nats, strict=True)]


METRIC = AccuracyPmi
