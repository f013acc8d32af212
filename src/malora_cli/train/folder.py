"""The folder of a run while it is trained: one process writes it, and a disk that fails is told in one line."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors import SafetensorError

from malora_cli.errors import RunError
from malora_cli.results import RunRecord, checkpoints_in, writing
from malora_cli.train import processes
from malora_cli.train.resuming import resume_command, unwritable

#: What a disk says that has no room left.
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
#: How safetensors says what the system has said.
_SAID = re.compile(r"I/O error: (?P<why>.+?) \(os error (?P<number>[0-9]+)\)")


@contextmanager
def held(record: RunRecord) -> Iterator[None]:
    """Within the block the run is written by these processes alone, of which one writes.

    Raises:
        RunError: Others write it, or the folder cannot be written.
    """
    with ExitStack() as stack:
        if processes.writes():
            try:
                stack.enter_context(writing(record))
            except OSError as error:
                raise unwritable(record.path, error.strerror) from error
        yield


@contextmanager
def told_of_the_disk(record: RunRecord) -> Iterator[None]:
    """Within the block, where the disk is full or fails, the run ends with what is safe and how to go on.

    Raises:
        RunError: It did.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        failure = _failure(error, record.path)
        if failure is None:
            raise
        if not record.exists:
            raise unwritable(record.path, failure.strerror) from error
        mend = "Free some space there" if failure.errno in _FULL else "Mend that"
        raise RunError(
            f"this cannot be read or written ({failure.strerror})",
            where=str(failure.filename),
            fix=f"{_safe(record)}. {mend}, and go on with: {resume_command(record)}",
        ) from error


def _failure(error: OSError | SafetensorError, folder: Path) -> OSError | None:
    """What the system has said, with the file that it was about as far as that is known; None where it was not it."""
    if isinstance(error, OSError):
        known = error.errno is not None and error.strerror
        return OSError(error.errno, error.strerror, str(error.filename or folder)) if known else None
    said = _SAID.search(str(error))
    return OSError(int(said["number"]), said["why"], str(folder)) if said else None


def _safe(record: RunRecord) -> str:
    """What of a run is on the disk whatever has happened."""
    whole = checkpoints_in(record.checkpoints_dir)
    return f"The checkpoint of step {whole[-1][0]:,} is whole" if whole else "No checkpoint has been saved yet"
