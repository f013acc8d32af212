"""Macro-F1 of labels: every label counts the same, however many rows it has; scikit-learn's value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from malora_cli.evals.metrics._base import Answer, Mark, Metric
from malora_cli.evals.metrics._labels import Labelled, read_labels

if TYPE_CHECKING:
    from malora_cli.results.statistics.arrays import FloatArray


class MacroF1(Metric):
    """Mean of the F1 of every label of the references; labels are read as those of `label`."""

    name: Literal["macro-f1"] = "macro-f1"

    def marks(self, answers: Sequence[Answer]) -> list[Mark]:
        """Right, wrongly given and missed answers of every label; a row's own score is whether it is right."""
        labels, read = read_labels(answers)
        return [Mark(float(one.given == one.right), _counts(one, labels), one.given is None) for one in read]

    def value(self, sums: FloatArray) -> FloatArray:
        """``2 tp / (2 tp + fp + fn)``, mean over the labels that some row should have."""
        import numpy as np

        right, wrong, missed = (sums[..., part::3] for part in range(3))
        wanted = right + missed > 0
        f1 = 2 * right / np.maximum(2 * right + wrong + missed, 1)
        return (wanted * f1).sum(axis=-1) / np.maximum(wanted.sum(axis=-1), 1)


def _counts(one: Labelled, labels: Sequence[str]) -> tuple[float, ...]:
    return tuple(
        float(count)
        for label in labels
        for count in (
            label == one.right == one.given,
            label == one.given != one.right,
            label == one.right != one.given,
        )
    )


METRIC = MacroF1
