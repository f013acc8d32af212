"""A question and its answer.

A row such as ``{"prompt": "What is 2 + 3?", "completion": "5"}``; any columns can be mapped to the two roles.
"""

from __future__ import annotations

from malora_cli.data.formats._base import Example, Format

FORMAT = Format(
    roles=("prompt", "completion"), example=lambda row: Example(prompt=row["prompt"], completion=row["completion"])
)
