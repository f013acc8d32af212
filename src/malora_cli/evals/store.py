"""What models answered, kept on disk as it comes: one JSON line an answer, under a hash of all that decided it.

RUN/eval/answers/TASK.adapter.jsonl    of a run's own adapter
CACHE/answers/BASE/TASK.jsonl          of a base model, for all runs on it

Nothing has changed: nothing is generated. Anything has changed (weights, number format, prompt, template, longest
answer, stop string): the hash is another one, and nothing is reused. Answers are written by the lot, and a lot that
was cut by a kill is removed whole, so that the next one is made of the same prompts and comes out the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from malora_cli.errors import RunError

#: How many answers of its lot come behind one.
_LEFT = "left"
_KEY = "key"


def key_of(*parts: Any) -> str:
    """A hash of what decides an answer."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


class Store:
    """The answers in one file.

    Args:
        path: The file; it and its folder are made when there is something to keep.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, dict[str, Any]] | None = None

    @property
    def found(self) -> Mapping[str, dict[str, Any]]:
        """Every answer under its key."""
        if self._found is None:
            self._found, _ = self._read()
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
                self._found, whole = self._read()
                if self.path.exists() and whole < self.path.stat().st_size:
                    warnings.warn(f"{self.path}: its end was cut by a kill; that lot is made again", stacklevel=4)
                    os.truncate(self.path, whole)
                yield
        except OSError as error:
            raise RunError(
                f"answers cannot be kept ({error.strerror or error})",
                where=str(self.path),
                fix="Free some space there, or evaluate into another folder: --out FOLDER.",
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self.path.with_suffix(".lock"))
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
        """Keep the answers of a lot, each with its key; they are on disk when this returns."""
        items = list(lot)
        lines = [
            json.dumps({_KEY: key, **value, _LEFT: left}, ensure_ascii=False, allow_nan=False) + "\n"
            for (key, value), left in zip(items, reversed(range(len(items))), strict=True)
        ]
        with self.path.open("a", encoding="utf-8", errors="surrogatepass") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())
        assert self._found is not None
        self._found.update(items)

    def _read(self) -> tuple[dict[str, dict[str, Any]], int]:
        """Every answer of a whole lot, and how many bytes these lots are."""
        found: dict[str, dict[str, Any]] = {}
        whole, at, lot = 0, 0, list[tuple[str, dict[str, Any]]]()
        if not self.path.is_file():
            return found, 0
        with self.path.open("rb") as file:
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
