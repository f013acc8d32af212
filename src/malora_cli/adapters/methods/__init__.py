"""One file a method. A module's ``METHOD`` is its settings class: what a recipe's ``method`` section may say."""

from __future__ import annotations

from malora_cli.adapters.methods._base import AdapterSettings
from malora_cli.registry import Registry

METHODS: Registry[type[AdapterSettings]] = Registry("method", "malora_cli.adapters.methods", "METHOD")
