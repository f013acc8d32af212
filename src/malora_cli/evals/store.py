"""What models answered, kept on disk as it comes: one JSON line an answer, under a hash of all that decided it.

RUN/eval/answers/TASK.adapter.jsonl    of a run's own adapter
CACHE/answers/BASE/TASK.base.jsonl     of a base model, for all runs on it

Nothing has changed: nothing is generated. Anything has changed (weights, number format, prompt, template, longest
answer, stop string): the hash is another one, and nothing is reused. Answers are written by the lot, and a lot that
was cut by a kill is removed whole, so that the next one is made of the same prompts and comes out the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from malora_cli.errors import RunError

#: Raise it when a change of ours makes answers of older versions wrong.
_VERSION = 1
#: How many answers of its lot come behind one.
_LEFT = "left"
_KEY = "key"
_OTHER_CACHE = "set XDG_CACHE_HOME to another folder"
_OTHER_FOLDER = "evaluate into another folder: --out FOLDER"


def key_of(*parts: Any) -> str:
    """A hash of what decides an answer."""
    return hashlib.sha256(json.dumps([_VERSION, *parts], sort_keys=True).encode()).hexdigest()[:40]


def answers_root() -> Path:
    """Folder of the answers of base models."""
    return user_cache_path("malora") / "answers"


class Store:
    """The answers in one file.

    Args:
        path: The file; it and its folder are made when there is something to keep.
        known: Another file of answers, which is only read.
    """

    def __init__(self, path: Path, known: Path | None = None) -> None:
        self.path = path
        self._known = _read(known)[0] if known is not None and known != path else {}
        self._found: dict[str, dict[str, Any]] | None = None

    @property
    def found(self) -> Mapping[str, dict[str, Any]]:
        """Every answer under its key."""
        if self._found is None:
            self._found = {**self._known, **_read(self.path)[0]}
            if self._shared:
                with suppress(OSError):  # when it was last used; it may not be there, or for reading only
                    os.utime(self.path)
        return self._found

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within the block this process alone writes the file; what a kill cut is gone from it.

        Raises:
            RunError: It cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                own, whole = _read(self.path)
                self._found = {**self._known, **own}
                if self.path.exists() and whole < self.path.stat().st_size:
                    warnings.warn(f"{self.path}: its end was cut by a kill; that lot is made again", stacklevel=4)
                    os.truncate(self.path, whole)
                yield
        except OSError as error:
            raise RunError(
                f"answers cannot be kept ({error.strerror or error})",
                where=str(self.path),
                fix=f"Free some space there, or {_OTHER_CACHE if self._shared else _OTHER_FOLDER}.",
            ) from error

    @property
    def _shared(self) -> bool:
        """Whether all runs on a base model share it, in the user's cache."""
        return self.path.is_relative_to(answers_root())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(_lock_path(self.path))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            warnings.warn(f"{self.path}: another evaluation writes these answers; waiting for it", stacklevel=5)
            lock.acquire()
        except NotImplementedError:  # a file system without locks: nobody can be waited for
            pass
        try:
            yield
        finally:
            lock.release()

    def add(self, lot: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Keep the answers of a lot, each with its key; they are on disk when this returns.

        Raises:
            RunError: How likely something is to the model is no number.
        """
        items = list(lot)
        try:
            lines = [
                json.dumps({_KEY: key, **value, _LEFT: left}, ensure_ascii=False, allow_nan=False) + "\n"
                for (key, value), left in zip(items, reversed(range(len(items))), strict=True)
            ]
        except ValueError as error:
            raise RunError(
                "the model's probabilities are not finite numbers (NaN or infinity)",
                where=f"the answers for {self.path.name}",
                fix="Its weights may be damaged, or overflow in their number format: try model.dtype=float32.",
            ) from error
        with self.path.open("a", encoding="utf-8", errors="surrogatepass") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())
        assert self._found is not None
        self._found.update(items)


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Every answer of a whole lot in a file, and how many bytes these lots are."""
    found: dict[str, dict[str, Any]] = {}
    whole, at, lot = 0, 0, list[tuple[str, dict[str, Any]]]()
    if not path.is_file():
        return found, 0
    with path.open("rb") as file:
        for line in file:
            at += len(line)
            parsed = _parsed(line)
            if parsed is None:
                break
            key, value, left = parsed
            lot.append((key, value))
            if left == 0:
                found.update(lot)
                lot.clear()
                whole = at
    return found, whole


def _parsed(line: bytes) -> tuple[str, dict[str, Any], int] | None:
    """The key of a line, its answer, and how many of its lot come behind; None where it is not whole."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
        return (str(value.pop(_KEY)), value, int(value.pop(_LEFT))) if isinstance(value, dict) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _lock_path(path: Path) -> Path:
    return path.with_suffix(".lock")


def kept_files() -> list[Path]:
    """The files of answers of base models, for `malora cache`."""
    return sorted(answers_root().glob("*/*.jsonl"))


def prune(*, unused_for_seconds: float) -> list[int]:
    """Remove answers of base models that were not used lately, but for those that are being written.

    Returns:
        How many bytes each file had that is gone.

    Raises:
        RunError: One cannot be removed.
    """
    oldest, gone = time.time() - unused_for_seconds, list[int]()
    for path in kept_files():
        try:
            with suppress(Timeout, NotImplementedError, FileNotFoundError), FileLock(_lock_path(path), timeout=0):
                status = path.stat()
                if status.st_mtime <= oldest:
                    path.unlink()
                    _lock_path(path).unlink(missing_ok=True)
                    gone.append(status.st_size)
        except OSError as error:
            raise RunError(f"it cannot be removed ({error.strerror or error})", where=str(path)) from error
        with suppress(OSError):  # others are left in it
            path.parent.rmdir()
    return gone
