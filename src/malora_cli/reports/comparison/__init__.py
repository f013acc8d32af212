"""The page of a comparison: ``NAME.compare/report/index.html``, made of sections of its own. Never torch."""

from malora_cli.reports.comparison.page import write_comparison
from malora_cli.reports.comparison.view import ComparisonView, Method

__all__ = ["ComparisonView", "Method", "write_comparison"]
