"""One writer a run folder: while a process trains into it, no other does.

RUN/.lock           locked by the kernel for as long as the writer lives, so that one that is killed blocks nobody
RUN/.writer.json    who that is, for the message that the others get

Both are gone when the writer is done, and so is the folder where it has written nothing else into it.
"""

from __future__ import annotations

import errno
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from filelock import FileLock, Timeout
from pydantic import Field

from malora_cli.errors import RunError
from malora_cli.results.files import read_json, write_json
from malora_cli.results.record import Record
from malora_cli.results.run import RunRecord, utc_now

#: What locking ends with on file systems that know no locks.
_NO_LOCKS = frozenset((errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL))


class Writer(Record):
    """The process that writes a run."""

    process: int
    host: str
    since: str = Field(description="UTC, ISO 8601")

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


@contextmanager
def writing(record: RunRecord) -> Iterator[None]:
    """Within the block this process alone writes a run, whose folder is made where it is not there yet.

    Raises:
        RunError: Another process writes it; the message says which.
        OSError: The folder cannot be written.
    """
    made = [path for path in (record.path, *record.path.parents) if not path.exists()]
    lock = FileLock(record.lock_path, timeout=0)
    try:
        record.path.mkdir(parents=True, exist_ok=True)
        _acquire(lock, record)
        try:
            writer = Writer(process=os.getpid(), host=socket.gethostname(), since=utc_now())
            write_json(record.writer_path, writer.model_dump())
            yield
        finally:
            for path in (record.writer_path, record.lock_path):  # whoever has opened it meanwhile sees that it is gone
                with suppress(OSError):  # a disk that fails has been told of already
                    path.unlink(missing_ok=True)
            lock.release()
    finally:
        with suppress(OSError):  # what is not empty stays
            for path in made:
                path.rmdir()


def check_not_written(record: RunRecord) -> None:
    """Make sure that no process writes a run, without touching its folder.

    Raises:
        RunError: One does; the message says which.
    """
    if not record.lock_path.exists():
        return
    lock = FileLock(record.lock_path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise _written_by_another(record) from None
    except (OSError, NotImplementedError):  # no locks here, or a folder for reading only: nobody can be known to write
        return
    lock.release()


def _acquire(lock: FileLock, record: RunRecord) -> None:
    try:
        lock.acquire()
    except Timeout:
        raise _written_by_another(record) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{record.path}: this file system has no locks, so nothing keeps another process from writing this run "
            "at the same time",
            stacklevel=4,
        )


def _written_by_another(record: RunRecord) -> RunError:
    try:
        who = f" ({Writer.model_validate(read_json(record.writer_path))})"
    except (OSError, ValueError):  # it is about to say so
        who = ""
    return RunError(
        f"another process is writing this run{who}",
        where=str(record.path),
        fix=f"Wait until it is done, or take another name: output.name={record.free_name()}",
    )
