"""Stanford Alpaca's columns: an instruction, an input that may be empty, and the output.

A row such as ``{"instruction": "Translate to French.", "input": "Good morning", "output": "Bonjour"}`` becomes the
user's turn "Translate to French." with "Good morning" in a paragraph below it, and the answer "Bonjour". Alpaca's own
preamble ("Below is an instruction ...") stood in for a chat template, so it is left out; a mix can give it as
``system``.
"""

from __future__ import annotations

from malora_cli.data.formats._base import Example, Format, paragraphs

FORMAT = Format(
    roles=("instruction", "output"),
    optional=("input", "system"),
    answer="output",
    example=lambda row: Example.single(
        paragraphs((row["instruction"], row["input"])), row["output"], system=row["system"]
    ),
)
