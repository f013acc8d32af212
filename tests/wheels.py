"""``python tests/wheels.py ONE OTHER``: two wheels hold the same files, byte by byte, and are small enough."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

MOST_BYTES = 2_000_000


def held(wheel: Path) -> dict[str, int]:
    """Checksums by name, but for the list of checksums itself."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist() if not entry.filename.endswith("/RECORD")}


def main() -> None:
    one, other = map(Path, sys.argv[1:])
    first, second = held(one), held(other)
    if different := sorted(name for name in {*first, *second} if first.get(name) != second.get(name)):
        sys.exit(f"{one} and {other} differ in {', '.join(different[:10])}")
    if (size := one.stat().st_size) > MOST_BYTES:
        sys.exit(f"{one} has {size:,} bytes, more than {MOST_BYTES:,}")
    print(f"{one.name}: {len(first)} files, {one.stat().st_size:,} bytes, the same from sdist and checkout")


if __name__ == "__main__":
    main()
