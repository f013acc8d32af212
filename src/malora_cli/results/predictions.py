"""``eval/*.predictions.jsonl``: every row of an evaluation with what was answered; the scores are in ``eval/*.json``.

One JSON object a line: ``task``, ``row`` (its number in the source, from 0), ``prompt``, ``reference`` (or
``references``), ``cluster`` where its task names a column of clusters, and under the name of each model, such as
``base`` and ``adapter``, its answer. Beside that stand NAME_score, NAME_nats (of the first reference; ``tokens`` are
its tokens), NAME_choices (nats of every choice), NAME_unread and NAME_outcome, where there is such a thing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from malora_cli.results.files import damaged

_SUFFIX = ".predictions.jsonl"
#: Names under which a model's answers may stand that is not what others are compared with.
MODELS = ("adapter", "model")
#: Digits of a prompt's hash.
_HASHED = 16


def hashed(prompt: str) -> str:
    """What stands for a prompt where its text is not to travel."""
    return sha256(prompt.encode()).hexdigest()[:_HASHED]


def cluster_of(row: Mapping[str, Any]) -> str:
    """The same for rows that are no independent evidence, also where one run has their texts and another hashes."""
    own = str(row.get("cluster", row["prompt"]))
    return own if re.fullmatch(f"[0-9a-f]{{{_HASHED}}}", own) else hashed(own)


def predictions_path(evaluation: Path) -> Path:
    """Where the predictions of an evaluation lie."""
    return evaluation.with_name(evaluation.name.removesuffix(".json") + _SUFFIX)


def read_predictions(evaluation: Path) -> Iterator[dict[str, Any]]:
    """The rows of an evaluation.

    Args:
        evaluation: Its ``.json`` file.

    Raises:
        RunError: They are not there, or damaged.
    """
    path = predictions_path(evaluation)
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield _row(line, number)
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, "predictions", error, fix="Evaluate again.") from error


def _row(line: str, number: int) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("task", "prompt")):
        raise ValueError(f"line {number} is not a row of an evaluation")
    return row
