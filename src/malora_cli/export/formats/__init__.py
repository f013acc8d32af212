"""Formats that a LoRA or a whole model is written in; one file each. A module's ``FORMAT`` is the format."""

from __future__ import annotations

from malora_cli.export.formats._base import Format, Origin
from malora_cli.registry import Registry

FORMATS: Registry[Format] = Registry("format", "malora_cli.export.formats", "FORMAT")

__all__ = ["FORMATS", "Format", "Origin"]
