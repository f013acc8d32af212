"""Which rows of a step go through the model together."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def packs(lengths: Sequence[int], *, tokens: int | None, rows: int) -> list[list[int]]:
    """Put rows together so that as few packs as possible hold them.

    Best fit, longest first: each row goes where the least room is left for it (at most 11/9 of the fewest packs there
    could be; Johnson, Near-optimal bin packing algorithms, MIT 1973). Without a limit of tokens, rows stay in order.

    Args:
        lengths: Tokens of each row.
        tokens: Tokens of a pack at most; a row alone may have more. None counts rows only.
        rows: Rows of a pack at most.

    Returns:
        The rows of each pack, each in ascending order.
    """
    if tokens is None:
        return [list(range(start, min(start + rows, len(lengths)))) for start in range(0, len(lengths), rows)]
    found: list[list[int]] = []
    room: list[tuple[int, int]] = []  # tokens left in each pack that still takes rows, least first
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        at = bisect_left(room, (lengths[row], 0))
        if at < len(room):
            left, pack = room.pop(at)
        else:
            left, pack = tokens, len(found)
            found.append([])
        found[pack].append(row)
        if len(found[pack]) < rows:
            insort(room, (left - lengths[row], pack))
    return [sorted(pack) for pack in found]
