"""Conversations as OpenAI and Hugging Face write them, of any number of turns, each answer supervised.

A row such as ``{"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}, {"role":
"user", "content": "Twice that?"}, {"role": "assistant", "content": "10"}]}`` is supervised at ``5`` and ``10``. A first
message of the role ``system`` is the row's own system prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from malora_cli.data.formats._base import Example, Format, conversation

_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}


def _example(row: Mapping[str, Any]) -> Example:
    return conversation(row["messages"], role_key="role", text_key="content", roles=_ROLES)


FORMAT = Format(roles=(), structured=("messages",), example=_example)
