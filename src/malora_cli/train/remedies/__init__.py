"""What is done against tasks getting in each other's way: one file a remedy. A module's ``REMEDY`` is its class.

The recipe's section ``remedies`` has a field for each, of the class's ``Settings``. Settings are read by every command,
so that modules here import torch inside the functions that compute with it.
"""

from __future__ import annotations

from typing import Any

from malora_cli.registry import Registry
from malora_cli.train.remedies._base import Remedy

REMEDIES: Registry[type[Remedy[Any]]] = Registry("remedy", "malora_cli.train.remedies", "REMEDY")
