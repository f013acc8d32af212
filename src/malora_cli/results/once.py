"""Folders that take long to make: each is made once, whole or not at all, and made anew where it is damaged.

A folder is filled under another name, flushed and renamed, so that a killed process leaves no half of one, and under a
lock, so that several processes at once make it once. What it holds is noted in it, so that damage is seen. One that is
as it was written is only read: nothing need be writable then.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from malora_cli.results.files import file_sha256, flush, read_json, write_json

RECORD = "about.json"
_SCRATCH = ".writing-"
_LOCK = ".lock"


def made_once(folder: Path, fill: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """See to it that a folder is there, and as it was written.

    Args:
        folder: Where it is to lie.
        fill: Writes its files into the folder that it is given, and returns what is to be known about them, as JSON.

    Returns:
        What is known about them.

    Raises:
        OSError: It is not there, and cannot be written; or whatever ``fill`` raises.
    """
    about = _intact(folder)
    if about is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            about = _intact(folder)  # another process has made it meanwhile
            if about is None:
                about = _make(folder, fill)
    return about


def known_about(folder: Path) -> dict[str, Any]:
    """What is known about a folder's files, whatever has become of them; nothing where that cannot be read."""
    try:
        return dict(read_json(folder / RECORD)["about"])
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def folders_in(root: Path) -> Iterator[Path]:
    """Every folder that was made here, damaged ones included."""
    yield from (path for path in _children(root) if path.is_dir() and not path.name.startswith(_SCRATCH))


def clear_scratch(root: Path) -> None:
    """Remove what killed processes left behind, and the locks of folders that are gone."""
    for path in _children(root):
        folder = root / path.name.removeprefix(_SCRATCH).removesuffix(_LOCK)
        if folder == path or (folder.exists() and path.name.endswith(_LOCK)):
            continue
        with suppress(Timeout, OSError), _lock(folder, timeout=0):  # whoever is filling it now holds the lock
            shutil.rmtree(_scratch(folder), ignore_errors=True)
            if not folder.exists():
                _lock_path(folder).unlink(missing_ok=True)


def _children(root: Path) -> list[Path]:
    return sorted(root.iterdir()) if root.is_dir() else []


def _scratch(folder: Path) -> Path:
    return folder.with_name(_SCRATCH + folder.name)


def _lock_path(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)


def _lock(folder: Path, timeout: float = -1) -> FileLock:
    return FileLock(_lock_path(folder), timeout=timeout)


def _intact(folder: Path) -> dict[str, Any] | None:
    """What is known about a folder's files, where they are those that were written.

    Their sizes and times are enough: hashing half a gigabyte takes as long as loading it, so that is kept for files
    that something has touched, as a copy does.
    """
    try:
        record = read_json(folder / RECORD)
        files, about = record["files"], dict(record["about"])
        stamps = {name: _stamp(folder / name) for name in files}
        touched = [name for name, stamp in stamps.items() if stamp != files[name]["stamp"]]
        if any(file_sha256(folder / name) != files[name]["sha256"] for name in touched):
            return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # a file is missing, or the record is none
        return None
    if touched:
        for name in touched:
            files[name]["stamp"] = stamps[name]
        with suppress(OSError):  # a folder that others share may be for reading only
            write_json(folder / RECORD, record)
    return about


def _make(folder: Path, fill: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    scratch = _scratch(folder)  # ours alone, under the lock
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed process left
    scratch.mkdir()
    try:
        about = fill(scratch)
        files = {}
        flush(scratch)
        for path in sorted(path for path in scratch.rglob("*") if path.is_file()):
            name = path.relative_to(scratch).as_posix()
            files[name] = {"stamp": _stamp(path), "sha256": file_sha256(path)}
        write_json(scratch / RECORD, {"about": about, "files": files})
        if folder.exists():  # damaged, or it would not be made
            shutil.rmtree(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return known_about(folder)


def _stamp(file: Path) -> list[int]:
    """Size in bytes, and when it was last changed, in nanoseconds."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]
