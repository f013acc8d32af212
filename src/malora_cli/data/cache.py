"""What took long to make, kept on disk under a hash of everything that decided it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from malora_cli.errors import DataError
from malora_cli.results import once

#: Raise it when a change in this room makes entries of older versions wrong.
_VERSION = 14


def cache_root() -> Path:
    """Folder of all entries."""
    return user_cache_path("malora") / "data"


def key_of(kind: str, *parts: Any) -> str:
    """Name of the entry that ``parts`` decide: its kind and a hash."""
    digest = hashlib.sha256(json.dumps([_VERSION, *parts], sort_keys=True).encode()).hexdigest()
    return f"{kind}-{digest[:40]}"


def cached(key: str, fill: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The entry of a key, made when it is not there or damaged.

    Args:
        key: From `key_of`.
        fill: Writes the entry's files into the folder it is given, and returns what is to be known about them, as JSON.

    Returns:
        The entry's folder and what is known about it.

    Raises:
        DataError: The cache cannot be written, as when the disk is full; or whatever ``fill`` raises.
    """
    folder = cache_root() / key
    try:
        about = once.made_once(folder, fill)
    except OSError as error:
        raise DataError(
            f"encoded rows cannot be kept ({error.strerror or error})",
            where=str(folder.parent),
            fix="Free some space there (`malora cache prune`), or set XDG_CACHE_HOME to another folder.",
        ) from error
    with suppress(OSError):  # a cache that others share may be for reading only
        os.utime(folder)  # when it was last used
    return folder, about


@dataclass(frozen=True)
class Entry:
    """One entry as `malora cache ls` shows it.

    Args:
        path: Its folder.
        about: What `cached` was told when it was filled; empty where that cannot be read.
        bytes: Size of its files.
        last_used: When it was last used, in seconds since 1970.
    """

    path: Path
    about: dict[str, Any]
    bytes: int
    last_used: float


def entries() -> list[Entry]:
    """All entries, the one used last first."""
    found = []
    for path in once.folders_in(cache_root()):
        with suppress(FileNotFoundError):  # another process removes it just now
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            found.append(Entry(path, once.known_about(path), size, path.stat().st_mtime))
    return sorted(found, key=lambda entry: entry.last_used, reverse=True)


def prune(*, unused_for_seconds: float) -> list[Entry]:
    """Remove entries that were not used lately, and what killed processes left behind.

    Returns:
        The entries that are gone.

    Raises:
        DataError: One cannot be removed.
    """
    oldest = time.time() - unused_for_seconds
    gone = [entry for entry in entries() if entry.last_used <= oldest]
    try:
        for entry in gone:
            with suppress(FileNotFoundError):
                shutil.rmtree(entry.path)
    except OSError as error:
        raise DataError(f"{entry.path.name} cannot be removed ({error.strerror})", where=str(cache_root())) from error
    once.clear_scratch(cache_root())
    return gone
