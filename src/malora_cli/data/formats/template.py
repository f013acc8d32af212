"""Jinja templates over the columns of a row.

With ``columns: {prompt: "{{ table }}: {{ question | trim }}", completion: "{{ 'yes' if answer else 'no' }}"}`` a row
such as ``{"table": "a | b", "question": "Is a first? ", "answer": true}`` becomes the user's turn "a | b: Is a first?"
and the answer "yes". Templates see the columns of their row and nothing else. Every other format takes them too; this
one has no column that is found by its name alone.
"""

from __future__ import annotations

from malora_cli.data.formats._base import Example, Format

FORMAT = Format(
    roles=("prompt", "completion"),
    optional=("system",),
    answer="completion",
    mapped=("system",),
    example=lambda row: Example.single(row["prompt"], row["completion"], row["system"]),
)
