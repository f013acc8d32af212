"""One file a metric: its options and how it scores an answer. A module's ``METRIC`` is the class."""

from __future__ import annotations

from malora_cli.evals.metrics._base import Metric
from malora_cli.registry import Registry

METRICS: Registry[type[Metric]] = Registry("metric", "malora_cli.evals.metrics", "METRIC")
