"""The page people look at: ``RUN/report/index.html``, made of sections that read results only. Never torch."""

from malora_cli.reports.page import check_writable, write_report
from malora_cli.reports.section import Section
from malora_cli.reports.view import RunView, Task

__all__ = ["RunView", "Section", "Task", "check_writable", "write_report"]
