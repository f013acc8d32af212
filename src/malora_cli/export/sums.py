"""``SHA256SUMS``: what an export's files were when it was written, as ``sha256sum -c`` reads it."""

from __future__ import annotations

import re
from pathlib import Path

from malora_cli.errors import RunError
from malora_cli.results import file_sha256, write_text

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def write_sums(folder: Path) -> None:
    """Write the hashes of all files of a folder, and of those below it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    write_text(
        folder / SUMS, "".join(f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    )


def changed_files(folder: Path) -> list[str] | None:
    """What was changed, added or is missing since an export was written; None where it left no hashes.

    Files whose names begin with a dot are not looked at: version control and the hub add such.

    Raises:
        RunError: The list holds no hashes.
    """
    if not (folder / SUMS).is_file():
        return None
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    expected = {found[2]: found[1] for found in map(_LINE.fullmatch, lines) if found is not None}
    if not expected:
        raise RunError("it lists no hashes", where=str(folder / SUMS), fix="Export the run again.")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    added = {name for name in there - {SUMS, *expected} if not any(part.startswith(".") for part in Path(name).parts)}
    return sorted(added | {name for name, hashed in expected.items() if not _is(folder, name, hashed)})


def _is(folder: Path, name: str, hashed: str) -> bool:
    """Whether a file of a folder has a hash; nothing outside the folder is read."""
    try:
        path = (folder / name).resolve()
        return path.is_relative_to(folder.resolve()) and path.is_file() and file_sha256(path) == hashed
    except (OSError, ValueError, RuntimeError):  # such as a link to itself
        return False
