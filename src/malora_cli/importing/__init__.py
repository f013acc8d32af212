"""Configurations of other tools as a recipe and a mix: one file a tool. A module's ``TOOL`` says what it reads."""

from __future__ import annotations

from malora_cli.importing._base import Fate, Line, Tool
from malora_cli.importing._convert import Imported, check_tool, convert
from malora_cli.registry import Registry

TOOLS: Registry[Tool] = Registry("tool", "malora_cli.importing", "TOOL")

__all__ = ["TOOLS", "Fate", "Imported", "Line", "Tool", "check_tool", "convert"]
