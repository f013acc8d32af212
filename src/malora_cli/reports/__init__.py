"""The pages people look at: ``report/index.html`` of a run or of a comparison, made of sections. Never torch."""

from malora_cli.reports.comparison import write_comparison
from malora_cli.reports.page import check_writable, write_report
from malora_cli.reports.section import Section
from malora_cli.reports.view import RunView, Task

__all__ = ["RunView", "Section", "Task", "check_writable", "write_comparison", "write_report"]
