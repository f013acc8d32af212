"""The folder of an export: free, large enough, and there as a whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from malora_cli.errors import RunError
from malora_cli.results import why_unwritable

_ANOTHER = "Name another by --out FOLDER."


#: What tells that a folder is an export: `--force` replaces nothing else.
_MARKS = ("merge.json", "verify.json", "serve.json", "adapter_config.json")


def check_place(folder: Path, *, force: bool) -> None:
    """Make sure that there is somewhere to put an export, before anything slow happens.

    Raises:
        RunError: Something is in the way, or nothing can be written there.
    """
    folder = folder.absolute()
    if folder.exists() and not force:
        fix = "Name another by --out FOLDER, or replace it with --force." if _is_export(folder) else _ANOTHER
        raise RunError("this folder exists already", where=str(folder), fix=fix)
    if folder.is_symlink() or (folder.exists() and not _is_export(folder)):
        raise RunError("what is there is not an export, and is not replaced", where=str(folder), fix=_ANOTHER)
    beside = _beside(folder, "writing")
    if (why := why_unwritable(beside if folder.exists() else folder)) is not None:
        raise RunError(f"the export cannot be written ({why})", where=str(folder), fix=_ANOTHER)


def _is_export(folder: Path) -> bool:
    """Whether a folder is empty, or holds what an export leaves."""
    return folder.is_dir() and (
        any((folder / mark).is_file() for mark in _MARKS) or next(folder.iterdir(), None) is None
    )


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


@contextmanager
def appearing_whole(folder: Path, *, force: bool = False) -> Iterator[Path]:
    """A scratch path that takes the name of ``folder`` when the block ends well, and is removed when it does not.

    Args:
        folder: Where the export is going to lie.
        force: Remove the export that lies there, once the new one has its place.
    """
    folder = folder.absolute()
    scratch, old = _beside(folder, "writing"), _beside(folder, "old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
            try:
                yield scratch
                if force and folder.exists():
                    folder.rename(old)
                scratch.rename(folder)
                shutil.rmtree(old, ignore_errors=True)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # which is what a full disk is to safetensors
        why = error.strerror or error if isinstance(error, OSError) else error
        fix = "Free some space there, or name another folder by --out FOLDER."
        raise RunError(f"the export cannot be written ({why})", where=str(folder), fix=fix) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process writes into a folder at a time.

    Raises:
        RunError: Another does.
    """
    lock = FileLock(_beside(folder, "lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError("another export is being written there", where=str(folder), fix=_ANOTHER) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
