"""What a bug report needs, in one file that can be shown to anybody: no rows, no secrets, no names of the machine."""

from __future__ import annotations

import json
import os
import platform
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from malora_cli.doctor.checks import Check
from malora_cli.errors import MaloraError
from malora_cli.results import RunRecord, write_text

#: Log steps and evaluations of the run, its newest ones.
_EVENTS = 50
#: How the names of variables end whose values are nobody's business, and the least length of such a value.
_SECRET, _LEAST = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE), 6
#: Secrets by their looks: tokens of the hub, and what stands before the host in an address.
_TOKENS = ((re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "hf_..."), (re.compile(r"(?<=://)[^/\s\"'@]+@"), ""))
#: What of a run is in it.
_PARTS: dict[str, Callable[[RunRecord], Any]] = {
    "manifest": lambda run: run.manifest.model_dump(mode="json"),
    "recipe": lambda run: run.recipe,
    "newest log events": lambda run: [
        event.model_dump(mode="json", exclude_none=True) for event in deque(run.metrics, _EVENTS)
    ],
}


def write_bundle(file: Path, checks: Iterable[Check], run: RunRecord | None) -> list[str]:
    """Write the checks, and of a run its manifest, its recipe and the end of its log.

    Args:
        file: JSON, written as a whole or not at all.
        checks: What was found on this machine.
        run: The run that it is about; None is none.

    Returns:
        What is in it, as lines for people.
    """
    found: dict[str, Any] = {"schema": 1, "checks": [asdict(check) for check in checks]}
    told = [f"{len(found['checks'])} checks of the installation"]
    if run is not None:
        found |= {"run": run.name, **{name: _read(run, part) for name, part in _PARTS.items()}}
        told += [f"run {run.name}: {', '.join(_PARTS)}"]
    write_text(file, f"{json.dumps(_cleaned(found), indent=2, ensure_ascii=False)}\n")
    return told


def _read(run: RunRecord, part: Callable[[RunRecord], Any]) -> Any:
    """A part of a run, or why it cannot be read, which is what the report may be about."""
    try:
        return part(run)
    except MaloraError as error:
        return f"{error.kind}: {error}"


def _cleaned(value: Any) -> Any:
    """Plain data without what says whose machine it is."""
    if isinstance(value, str):
        return _cleaned_text(value)
    if isinstance(value, dict):
        return {_cleaned_text(str(key)): _cleaned(item) for key, item in value.items()}
    return [_cleaned(item) for item in value] if isinstance(value, list) else value


def _cleaned_text(text: str) -> str:
    for name, secret in os.environ.items():
        if _SECRET.search(name) and len(secret) >= _LEAST:
            text = text.replace(secret, f"${name}")
    for looks, instead in _TOKENS:
        text = looks.sub(instead, text)
    for own, instead in ((str(Path.home()), "~"), (platform.node(), "HOST")):
        if len(own) > 1:
            text = re.sub(rf"(?<![\w.-]){re.escape(own)}(?![\w.-])", instead, text)
    return text
