"""Macro-F1 of labels: every label counts the same, however many rows it has; scikit-learn's value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from malora_cli.errors import DataError
from malora_cli.evals.metrics._base import Answer, Mark, Metric
from malora_cli.evals.metrics._labels import Labelled, read_labels

if TYPE_CHECKING:
    from malora_cli.results.statistics.arrays import FloatArray


#: Every row has counts of every label.
_MOST_LABELS = 2_000


class MacroF1(Metric):
    """Mean of the F1 of every label of the references; labels are read as those of `label`."""

    name: Literal["macro-f1"] = "macro-f1"

    def marks(self, answers: Sequence[Answer]) -> list[Mark]:
        """Right, wrongly given and missed answers of every label; a row's own score is whether it is right."""
        labels, read = read_labels(answers)
        if len(labels) > _MOST_LABELS:
            what = f"macro-f1 of {len(labels):,} labels, where {_MOST_LABELS:,} are the most"
            raise DataError(what, fix="Take exact-match or token-f1 for answers that are not labels.")
        place = {label: 3 * number for number, label in enumerate(labels)}
        return [Mark(float(one.given == one.right), _counts(one, place), one.given is None) for one in read]

    def value(self, sums: FloatArray) -> FloatArray:
        """``2 tp / (2 tp + fp + fn)``, mean over the labels that some row should have."""
        import numpy as np

        right, wrong, missed = (sums[..., part::3] for part in range(3))
        wanted = right + missed > 0
        f1 = 2 * right / np.maximum(2 * right + wrong + missed, 1)
        return (wanted * f1).sum(axis=-1) / np.maximum(wanted.sum(axis=-1), 1)


def _counts(one: Labelled, place: Mapping[str, int]) -> tuple[float, ...]:
    counts = [0.0] * (3 * len(place))
    if one.given == one.right:
        counts[place[one.right]] = 1.0
        return tuple(counts)
    if one.given is not None:
        counts[place[one.given] + 1] = 1.0
    counts[place[one.right] + 2] = 1.0
    return tuple(counts)


METRIC = MacroF1
