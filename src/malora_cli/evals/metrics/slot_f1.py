"""Slot F1: the slots of requests, as assistants are scored, in answers such as ``AddToPlaylist; music_item=track``."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from malora_cli.evals.metrics._base import Answer, CorpusMetric
from malora_cli.evals.metrics._labels import folded
from malora_cli.recipe.settings import Text

if TYPE_CHECKING:
    from malora_cli.results.statistics.arrays import FloatArray

Slots = Counter[tuple[str, str]]
#: An intent that stands alone.
_INTENT = re.compile(r"[\w#+.:-]+")


class SlotF1(CorpusMetric):
    """F1 of the slots of all rows together: right are those of the same name and value, case and white space aside."""

    name: Literal["slot-f1"] = "slot-f1"
    separator: Text = Field(default=";", description="What parts the slots")
    equals: Text = Field(default="=", description="What stands between the name of a slot and its value")
    intent: bool = Field(default=False, description="Whether the intent in front counts as one slot more")

    def counts(self, answer: Answer) -> tuple[float, ...]:
        """Slots that are right, wrong and missing, against the right answer that is nearest."""
        import numpy as np

        given = self._slots(answer.text)
        ways = [_compared(given, self._slots(reference)) for reference in answer.references]
        return max(ways, key=lambda way: float(self.value(np.asarray(way))))

    def value(self, sums: FloatArray) -> FloatArray:
        """``2 tp / (2 tp + fp + fn)``; 1 where there is nothing to be found, and nothing was."""
        import numpy as np

        slots = 2 * sums[..., 0] + sums[..., 1] + sums[..., 2]
        return np.where(slots > 0, 2 * sums[..., 0] / np.maximum(slots, 1), 1.0)

    def reads(self, reference: str) -> bool:
        """Whether it has a slot, or is an intent alone."""
        return self._slots(reference) is not None

    def _slots(self, text: str) -> Slots | None:
        # What comes behind the first line is said beyond what was asked for.
        line = text if "\n" in self.separator else text.strip().partition("\n")[0]
        parts = [part.strip() for part in line.split(self.separator) if part.strip()]
        intent = parts.pop(0) if parts and self.equals not in parts[0] else ""
        if not any(self.equals in part for part in parts) and (parts or not _INTENT.fullmatch(intent)):
            return None
        pairs = [part.partition(self.equals) for part in parts]
        if self.intent and intent:
            pairs.append((intent, "", ""))
        return Counter((folded(name), folded(value)) for name, _, value in pairs)


def _compared(given: Slots | None, wanted: Slots | None) -> tuple[float, ...]:
    """Right, wrong and missing; what cannot be read is never right, as it would be where there are no slots."""
    if given is None or wanted is None:
        return 0.0, float(not wanted), float(wanted.total() if wanted else 0)
    right = (given & wanted).total()
    return float(right), float(given.total() - right), float(wanted.total() - right)


METRIC = SlotF1
