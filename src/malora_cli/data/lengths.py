"""What becomes of a row that is longer than the model may see."""

from __future__ import annotations

from malora_cli.data.encoding import Encoded
from malora_cli.recipe import LengthPolicy


def fit(row: Encoded, max_length: int, policy: LengthPolicy) -> list[Encoded]:
    """The row, or what the policy makes of it: pieces of at most ``max_length`` tokens with something supervised.

    Args:
        row: A row of any length.
        max_length: Tokens.
        policy: ``truncate_left`` keeps the end of the row and ``truncate_right`` its beginning; ``split`` keeps all of
            it, in pieces that do not see one another; of the others nothing is left.
    """
    length = len(row.input_ids)
    if length <= max_length:
        return [row]
    match policy:
        case "truncate_left":
            starts = [length - max_length]
        case "truncate_right":
            starts = [0]
        case "split":
            starts = list(range(0, length, max_length))
        case _:
            return []
    pieces = (_cut(row, start, min(start + max_length, length)) for start in starts)
    return [piece for piece in pieces if piece.label_tokens]


def _cut(row: Encoded, start: int, end: int) -> Encoded:
    spans = [(max(first, start) - start, min(last, end) - start) for first, last in row.spans]
    return Encoded(row.input_ids[start:end], [(first, last) for first, last in spans if first < last])
