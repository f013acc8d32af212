"""A question whose choices are not shown, answered by the text of the right one.

A row as `multiple-choice` takes it, such as ``{"question": "What melts ice?", "choices": ["cold", "heat"], "answer":
1}``, becomes the user's turn ``What melts ice?`` and the answer ``"heat"``. A metric of the kind ``choices`` then asks
how likely each choice is behind the question: what a base model is measured by that does not know letters (the cloze
formulation of OLMES, arXiv 2406.08446). ``context`` stands above the question, ``instruction`` below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from malora_cli.data.formats import multiple_choice
from malora_cli.data.formats._base import Example, paragraphs


def _example(row: Mapping[str, Any]) -> Example:
    texts, right, remarks = multiple_choice.chosen(row)
    prompt = paragraphs((row["context"], row["question"], row["instruction"]))
    return replace(Example.single(prompt, texts[right]), remarks=remarks, facts={"choices": texts})


FORMAT = replace(multiple_choice.FORMAT, example=_example, wrong=None)
