"""``SHA256SUMS``: what an export's files were when it was written, as ``sha256sum -c`` reads it."""

from __future__ import annotations

from pathlib import Path

from malora_cli.errors import RunError
from malora_cli.results import file_sha256, write_text

SUMS = "SHA256SUMS"


def write_sums(folder: Path) -> None:
    """Write the hashes of all files of a folder, and of those below it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    write_text(
        folder / SUMS, "".join(f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    )


def changed_files(folder: Path) -> list[str] | None:
    """What was changed or is missing since an export was written; None where it left no hashes.

    Raises:
        RunError: The list cannot be read.
    """
    if not (folder / SUMS).is_file():
        return None
    found = []
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        path = folder / name
        if not name or not path.resolve().is_relative_to(folder.resolve()):
            raise RunError(f"'{line[:80]}' is not a hash and the name of a file", where=str(folder / SUMS))
        if not path.is_file() or file_sha256(path) != expected:
            found.append(name)
    return found
