"""The backends that there are."""

from __future__ import annotations

from malora_cli.evals.sandbox._base import Backend
from malora_cli.registry import Registry

BACKENDS: Registry[type[Backend]] = Registry("sandbox", "malora_cli.evals.sandbox", "BACKEND")
