"""A question and its answer.

A row such as ``{"prompt": "What is 2 + 3?", "completion": "5"}`` becomes a user's turn and the answer; a column for
the role ``system`` becomes the system prompt of its row. Where a row has a list as completion, each is a right answer.
"""

from __future__ import annotations

from malora_cli.data.formats._base import Example, Format

FORMAT = Format(
    roles=("prompt", "completion"),
    optional=("system",),
    answer="completion",
    example=lambda row: Example.single(row["prompt"], row["completion"], row["system"]),
)
