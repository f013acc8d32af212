"""One file a metric. A module's ``METRIC`` scores predictions against references, row by row."""

from __future__ import annotations

from malora_cli.evals.metrics._base import Metric
from malora_cli.registry import Registry

METRICS: Registry[Metric] = Registry("metric", "malora_cli.evals.metrics", "METRIC")
