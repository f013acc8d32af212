"""One file a metric: its options and how it scores an answer. A module's ``METRIC`` is the class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from malora_cli.evals.metrics._base import Metric
from malora_cli.registry import Registry

if TYPE_CHECKING:
    from malora_cli.evals.as_evaluate import AsEvaluate

METRICS: Registry[type[Metric]] = Registry("metric", "malora_cli.evals.metrics", "METRIC")


def as_evaluate(name: str, **options: Any) -> AsEvaluate:
    """A metric of ours as an ``evaluate.Metric``, which needs no network.

    Args:
        name: The metric, such as ``"slot-f1"``.
        options: Its options, as a task's ``metric`` takes them.

    Returns:
        What computes, of ``predictions`` and ``references``, the score under the metric's name, and ``unread``.
    """
    from malora_cli.evals.as_evaluate import AsEvaluate  # its library takes seconds to load

    return AsEvaluate(METRICS[name](**options))
