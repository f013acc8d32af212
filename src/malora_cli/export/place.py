"""The folder of an export: free, large enough, and there as a whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from malora_cli.errors import RunError
from malora_cli.results import why_unwritable

_ANOTHER = "Name another by --out FOLDER."


def check_place(folder: Path, *, force: bool) -> None:
    """Make sure that there is somewhere to put an export, before anything slow happens.

    Raises:
        RunError: Something is in the way, or nothing can be written there.
    """
    if folder.exists() and not force:
        fix = "Name another by --out FOLDER, or replace it with --force."
        raise RunError("this folder exists already", where=str(folder), fix=fix)
    if folder.exists() and not folder.is_dir():
        raise RunError("a file is in the way", where=str(folder), fix=_ANOTHER)
    beside = folder.with_name(f".{folder.name}.writing")
    if (why := why_unwritable(beside if folder.exists() else folder)) is not None:
        raise RunError(f"the export cannot be written ({why})", where=str(folder), fix=_ANOTHER)


@contextmanager
def appearing_whole(folder: Path, *, force: bool = False) -> Iterator[Path]:
    """A scratch path that takes the name of ``folder`` when the block ends well, and is removed when it does not.

    Args:
        folder: Where the export is going to lie.
        force: Remove what lies there, once the block has ended well.
    """
    scratch = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        if force:
            shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except (OSError, SafetensorError) as error:  # which is what a full disk is to safetensors
        why = error.strerror or error if isinstance(error, OSError) else error
        fix = "Free some space there, or name another folder by --out FOLDER."
        raise RunError(f"the export cannot be written ({why})", where=str(folder), fix=fix) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
