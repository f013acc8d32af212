"""Tokenizers that put a word mark before a text, where a text goes on from another.

SentencePiece begins every text with a space. A text that is tokenised in parts must not get one at each seam.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from tokenizers import Tokenizer

#: Where a word mark is put: nowhere, at the beginning of a text, or behind each special token in it as well.
Marks = Literal["never", "first", "always"]


def marks_of(backend: Tokenizer) -> Marks:
    """Where a tokenizer puts word marks."""
    spec = json.loads(backend.to_str())
    found = [_marks(step) for key in ("normalizer", "pre_tokenizer") for step in _steps(spec[key])]
    return "always" if "always" in found else "first" if "first" in found else "never"


def without_marks(backend: Tokenizer) -> Tokenizer:
    """The same tokenizer for texts that go on from others."""
    spec = json.loads(backend.to_str())
    for key in ("normalizer", "pre_tokenizer"):
        spec[key] = _unmarked(spec[key])
    return Tokenizer.from_str(json.dumps(spec))


def _steps(spec: Any) -> list[dict[str, Any]]:
    if spec is None:
        return []
    if spec["type"] != "Sequence":
        return [spec]
    return [step for inner in spec.get("normalizers", spec.get("pretokenizers")) for step in _steps(inner)]


def _marks(step: dict[str, Any]) -> Marks:
    match step["type"]:
        case "Prepend":
            return "always"
        case "Metaspace":
            scheme: Marks = step["prepend_scheme"]
            return scheme
        case "ByteLevel" if step.get("add_prefix_space"):
            return "always"
    return "never"


def _unmarked(spec: Any) -> Any:
    if spec is None or spec["type"] == "Prepend":
        return None
    if spec["type"] == "Metaspace":
        return {**spec, "prepend_scheme": "never"}
    if spec["type"] == "ByteLevel":
        return {**spec, "add_prefix_space": False}
    for key in ("normalizers", "pretokenizers"):
        if key in spec:
            return {**spec, key: [step for inner in spec[key] if (step := _unmarked(inner)) is not None]}
    return spec
