"""Reading and writing small files so that a crash leaves either the old one or the new one, never half of one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil
from platformdirs import user_cache_path
from pydantic import ValidationError

from malora_cli.errors import RunError

WINDOWS = os.name == "nt"
#: What a file is called while it is written: by the process that writes it, so that two never write the same.
_SCRATCH = re.compile(r"\.malora-(?P<host>.+)-(?P<process>[0-9]+)\.tmp")
#: Shows a value in a message, however large or deep it is.
_SHORT = reprlib.Repr()
_SHORT.maxstring = 60


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically: to a neighbour first, flushed to disk, then renamed over it.

    Raises:
        OSError: It cannot be written, and names ``path``; what lay there before is untouched.
    """
    scratch = path.with_name(f".malora-{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_scratch(path.parent)
        try:
            # Halves of characters, as in names of files that are no UTF-8, are written as JSON spells them.
            with scratch.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def flush(folder: Path) -> None:
    """See to it that every file in a folder, and its name, is on disk, and not only on its way there."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b" if WINDOWS else "rb") as file:  # where a file open for reading cannot be flushed
                os.fsync(file.fileno())
    if not WINDOWS:  # where folders cannot be opened
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def is_scratch(path: Path) -> bool:
    """Whether a file is one that `write_text` is writing, or was when its process was killed."""
    return _SCRATCH.fullmatch(path.name) is not None


def _clear_scratch(folder: Path) -> None:
    """Remove what processes of this machine that are gone have left half-written."""
    for path in folder.glob(".malora-*.tmp"):
        match = _SCRATCH.fullmatch(path.name)
        if match and match["host"] == socket.gethostname() and not _runs(int(match["process"])):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        return psutil.pid_exists(process)
    except OverflowError:  # no system numbers one so high
        return False


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinities are refused: they are no JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file.

    Raises:
        ValueError: It is no JSON; NaN and infinities are none.
        OSError: It cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from None


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"not valid JSON: {constant}")


def damaged(path: Path, what: str, error: Exception, *, fix: str | None = None) -> RunError:
    """What is raised where a file of a run cannot be read, such as its ``"manifest"``."""
    return RunError(f"the {what} cannot be read ({_reason(error)})", where=str(path), fix=fix)


def _reason(error: Exception) -> str:
    """Why something cannot be read, in one line: with the key and the value where they are known."""
    if isinstance(error, ValidationError):
        first, *more = error.errors(include_url=False)
        key = f"{'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        value = "" if first["type"] == "missing" else f", got {shown(first['input'])}"
        return f"{key}{first['msg']}{value}" + (f"; {len(more)} more" if more else "")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


def shown(value: object) -> str:
    """A value in a message."""
    return _SHORT.repr(value)


def free_bytes(folder: Path) -> int:
    """Free space where a folder lies, or is going to lie."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    return shutil.disk_usage(there).free


def why_unwritable(folder: Path) -> str | None:
    """Why nothing can be written in a folder, to ask before anything slow happens; None where it can.

    A folder that is not there yet is asked for by the nearest one that is. The file that is tried never gets a name, so
    nothing stays behind.
    """
    try:
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(bytes(4096))
    except OSError as error:
        return error.strerror or str(error)
    return None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


#: Nanoseconds for which a file may change again without its times telling, on coarse clocks.
_TICK_NS = 2 * 10**9


def remembered_sha256(path: Path) -> str:
    """As `file_sha256`, but worked out once on a machine for a file that stays where and as it is.

    As Git does it, a file is the same while its size and its times are; the time of its last change of any kind
    cannot be set back.
    """
    path = path.resolve()
    place = hashlib.sha256(str(path).encode()).hexdigest()
    note, status = user_cache_path("malora") / "hashes" / f"{place}.json", path.stat()
    stamp = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    with suppress(OSError, ValueError, LookupError, TypeError):  # not there, or damaged
        known = read_json(note)
        if known["stamp"] == stamp:
            return str(known["sha256"])
    sha256 = file_sha256(path)
    if time.time_ns() - max(stamp[2:]) > _TICK_NS:
        with suppress(OSError):  # a cache that others share may be for reading only
            write_json(note, {"stamp": stamp, "sha256": sha256})
    return sha256
