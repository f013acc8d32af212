"""What is measured of a task's rows, and what is concluded from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from malora_cli.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from malora_cli.results.statistics.arrays import FloatArray


def ratio(sums: FloatArray) -> FloatArray:
    """The first count over the second: a mean of row scores where the second counts rows."""
    return sums[..., 0] / sums[..., 1]


@dataclass(frozen=True, eq=False)
class Measured:
    """One task's rows under one model, as counts that add up.

    Args:
        counts: Sufficient counts of every row, shape ``(rows, k)``.
        clusters: The cluster of every row, numbers or strings; None makes each row its own.
        value: From sums of counts, shape ``(..., k)``, to scores, shape ``(...)``.
        bounded: Whether the score lies between 0 and 1 whatever the rows; a loss does not.
        own: What each row scores alone, for which of two models wins it; None is what its counts come to.

    Raises:
        DataError: There are no rows, not as many clusters as rows, or the score is not finite.
    """

    counts: FloatArray
    clusters: ArrayLike | None = None
    value: Callable[[FloatArray], FloatArray] = ratio
    bounded: bool = True
    own: Sequence[float] | None = None

    def __post_init__(self) -> None:
        import numpy as np

        counts = np.asarray(self.counts, dtype=np.float64)
        object.__setattr__(self, "counts", counts)
        if counts.ndim != 2 or not len(counts):
            raise DataError("no rows were scored", fix="Give the task at least one row.")
        if len(self.codes) != len(counts):
            raise DataError(f"{len(counts)} rows have {len(self.codes)} clusters", fix="Give every row its cluster.")
        if not np.isfinite(counts).all():
            row = int(np.flatnonzero(~np.isfinite(counts).all(axis=1))[0])
            raise DataError("the score is not a finite number", where=f"row {row + 1}", fix="Check the metric.")
        if not np.isfinite(self.score):
            raise DataError("the score of all rows is not a finite number", fix="Check the metric.")

    @classmethod
    def of_scores(cls, scores: Sequence[float], clusters: ArrayLike | None = None) -> Measured:
        """A task whose score is the mean of its rows' scores."""
        import numpy as np

        listed = np.asarray(scores, dtype=np.float64)
        return cls(np.stack([listed, np.ones_like(listed)], axis=-1), clusters)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.counts)

    @cached_property
    def codes(self) -> NDArray[np.intp]:
        """The cluster of every row as a number from 0."""
        import numpy as np

        labels = np.arange(self.rows) if self.clusters is None else np.asarray(self.clusters)
        return np.unique(labels, return_inverse=True)[1]

    @property
    def cluster_count(self) -> int:
        """How many clusters the rows form."""
        return int(self.codes.max()) + 1

    @cached_property
    def score(self) -> float:
        """The score of all rows together."""
        return float(self.value(self.counts.sum(axis=0)))

    @cached_property
    def row_scores(self) -> FloatArray:
        """The score of every row alone."""
        import numpy as np

        return self.value(self.counts) if self.own is None else np.asarray(self.own, dtype=np.float64)

    @cached_property
    def is_binary(self) -> bool:
        """Whether the score is the mean of rows that are right (1) or wrong (0)."""
        scores, ones = self.counts[:, 0], self.counts[:, 1:]
        means = self.value is ratio and ones.shape[1] == 1 and bool((ones == 1).all())
        return means and bool(((scores == 0) | (scores == 1)).all())


@dataclass(frozen=True)
class Interval:
    """A 95% interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """The difference of two models over the same rows, later minus earlier.

    Args:
        difference: Of the two scores.
        interval: Its 95% interval; None where there are not two clusters.
        p: Two-sided, not corrected for other tests.
        wins: Rows on which the later model scores higher.
        ties: Rows on which both score the same.
        losses: Rows on which it scores lower.
        detectable: Smallest true difference found 80 times in 100 at 5%; None where no difference could be.
    """

    difference: float
    interval: Interval | None
    p: float
    wins: int
    ties: int
    losses: int
    detectable: float | None
