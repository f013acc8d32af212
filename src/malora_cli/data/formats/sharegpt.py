"""Conversations as ShareGPT writes them, of any number of turns, each answer supervised.

A row such as ``{"conversations": [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5"}]}`` is supervised
at ``5``. The system prompt is a first message from ``system``, or a column for the role ``system``. Messages from
``function_call`` and ``observation`` are tool calls and what the tools answer. A mix may name
the column of an ``answer`` to conversations that end with the user (``columns: {answer: chosen}``).
"""

from __future__ import annotations

from malora_cli.data.formats._conversation import conversations_in

FORMAT = conversations_in("conversations")
