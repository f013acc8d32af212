"""Reading and writing small files so that a crash leaves either the old one or the new one, never half of one."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from malora_cli.errors import RunError


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically: to a neighbour first, flushed to disk, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    # Halves of characters, as in names of files that are no UTF-8, are written as JSON spells them.
    with scratch.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinities are refused: they are no JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def damaged(path: Path, what: str, error: Exception, *, fix: str | None = None) -> RunError:
    """What is raised where a file of a run cannot be read, such as its ``"manifest"``."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return RunError(f"the {what} cannot be read ({reason})", where=str(path), fix=fix)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
