"""What took long to make, kept on disk under a hash of everything that decided it.

An entry is a folder. It is filled under another name, flushed and renamed, so that a killed run leaves no half of one,
and under a lock, so that several processes at once make it once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from malora_cli.errors import DataError
from malora_cli.results import read_json, write_json

#: Raise it when a change in this room makes entries of older versions wrong.
_VERSION = 4
_SCRATCH = ".writing-"
_LOCK = ".lock"
_ABOUT = "about.json"


def cache_root() -> Path:
    """Folder of all entries."""
    return user_cache_path("malora") / "data"


def key_of(kind: str, *parts: Any) -> str:
    """Name of the entry that ``parts`` decide: its kind and a hash."""
    digest = hashlib.sha256(json.dumps([_VERSION, *parts], sort_keys=True).encode()).hexdigest()
    return f"{kind}-{digest[:40]}"


def cached(key: str, fill: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The entry of a key, made when it is not there.

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
        if not (folder / _ABOUT).is_file():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(key + _LOCK)):
                if not (folder / _ABOUT).is_file():
                    _fill(folder, fill)
        with suppress(PermissionError):  # a cache that others share may be for reading only
            os.utime(folder)  # when it was last used
        return folder, read_json(folder / _ABOUT)
    except OSError as error:
        raise DataError(
            f"encoded rows cannot be kept ({error.strerror or error})",
            where=str(folder.parent),
            fix="Free some space there (`malora cache prune`), or set XDG_CACHE_HOME to another folder.",
        ) from error


def _fill(folder: Path, fill: Callable[[Path], dict[str, Any]]) -> None:
    scratch = folder.with_name(_SCRATCH + folder.name)  # ours alone, under the lock
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed process left
    scratch.mkdir()
    try:
        about = fill(scratch)
        for path in scratch.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        write_json(scratch / _ABOUT, about)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class Entry:
    """One entry as `malora cache ls` shows it; ``about`` is what `cached` was told when it was filled."""

    path: Path
    about: dict[str, Any]
    bytes: int
    last_used: float


def entries() -> Iterator[Entry]:
    """All entries, the one used last first."""
    folders = [path for path in _children() if (path / _ABOUT).is_file() and not path.name.startswith(_SCRATCH)]
    for path in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        size = sum(file.stat().st_size for file in path.iterdir())
        yield Entry(path, read_json(path / _ABOUT), size, path.stat().st_mtime)


def prune(*, unused_for_seconds: float) -> list[Entry]:
    """Remove entries that were not used lately, and what killed processes left behind.

    Returns:
        The entries that are gone.
    """
    oldest = time.time() - unused_for_seconds
    gone = [entry for entry in entries() if entry.last_used <= oldest]
    for entry in gone:
        shutil.rmtree(entry.path, ignore_errors=True)
    for path in _children():
        key = path.name.removeprefix(_SCRATCH).removesuffix(_LOCK)
        if path.name == key or (path.parent / key).exists():
            continue
        try:
            # Whoever is filling the entry now holds the lock.
            with FileLock(path.with_name(key + _LOCK), timeout=0):
                shutil.rmtree(path.with_name(_SCRATCH + key), ignore_errors=True)
            path.with_name(key + _LOCK).unlink(missing_ok=True)
        except Timeout:
            continue
    return gone


def _children() -> list[Path]:
    root = cache_root()
    return list(root.iterdir()) if root.is_dir() else []
