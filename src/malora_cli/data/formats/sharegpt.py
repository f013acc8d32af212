"""Conversations as ShareGPT writes them, of any number of turns, each answer supervised.

A row such as ``{"conversations": [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5"}]}`` is supervised
at ``5``. The system prompt is a first message from ``system``, or a column for the role ``system``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from malora_cli.data.formats._base import Example, Format, conversation, with_system

_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def _example(row: Mapping[str, Any]) -> Example:
    example = conversation(row["conversations"], role_key="from", text_key="value", roles=_ROLES)
    return with_system(example, row["system"])


FORMAT = Format(roles=(), structured=("conversations",), optional=("system",), example=_example)
