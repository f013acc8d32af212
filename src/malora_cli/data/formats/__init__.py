"""One file a prompt format. A module's ``FORMAT`` says how a row becomes a conversation and its supervised end."""

from __future__ import annotations

from malora_cli.data.formats._base import Format
from malora_cli.registry import Registry

FORMATS: Registry[Format] = Registry("format", "malora_cli.data.formats", "FORMAT")
