"""What becomes of long rows, and that a packed row is nobody else's context."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malora_cli.data.encoding import Encoded
from malora_cli.data.lengths import fit
from malora_cli.data.packing import packs

ROW = Encoded(list(range(10)), [(2, 4), (7, 10)])


@pytest.mark.parametrize(
    ("policy", "longest", "expected"),
    [
        ("drop", 10, [ROW]),
        ("drop", 9, []),
        ("error", 9, []),
        ("truncate_right", 8, [Encoded(list(range(8)), [(2, 4), (7, 8)])]),
        ("truncate_right", 3, [Encoded([0, 1, 2], [(2, 3)])]),
        ("truncate_right", 2, []),  # nothing supervised is left
        ("truncate_left", 6, [Encoded(list(range(4, 10)), [(3, 6)])]),
        ("truncate_left", 7, [Encoded(list(range(3, 10)), [(0, 1), (4, 7)])]),
        ("split", 4, [Encoded([0, 1, 2, 3], [(2, 4)]), Encoded([4, 5, 6, 7], [(3, 4)]), Encoded([8, 9], [(0, 2)])]),
        ("split", 2, [Encoded([2, 3], [(0, 2)]), Encoded([6, 7], [(1, 2)]), Encoded([8, 9], [(0, 2)])]),
    ],
)
def test_policies(policy: str, longest: int, expected: list[Encoded]) -> None:
    assert fit(ROW, longest, policy) == expected  # type: ignore[arg-type]


@st.composite
def rows(draw: st.DrawFn) -> Encoded:
    length = draw(st.integers(1, 60))
    ends = draw(st.lists(st.integers(0, length), unique=True, max_size=8).map(sorted))
    return Encoded(list(range(length)), list(zip(ends[::2], ends[1::2], strict=False)))


@given(rows(), st.integers(1, 70), st.sampled_from(["truncate_left", "truncate_right", "split"]))
def test_a_piece_supervises_what_the_row_did(row: Encoded, longest: int, policy: str) -> None:
    supervised = {at for first, last in row.spans for at in range(first, last)}
    for piece in fit(row, longest, policy):  # type: ignore[arg-type]
        assert len(piece.input_ids) <= max(longest, len(row.input_ids) if len(row.input_ids) <= longest else 0)
        inside = {piece.input_ids[at] for first, last in piece.spans for at in range(first, last)}
        assert inside == supervised & set(piece.input_ids)  # tokens are their own positions here


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 120), st.integers(1, 12))
def test_packs_hold_every_row_once_and_keep_their_limits(lengths: list[int], tokens: int, most: int) -> None:
    found = packs(lengths, tokens=tokens, rows=most)
    assert sorted(chain.from_iterable(found)) == list(range(len(lengths)))
    for pack in found:
        assert len(pack) <= most
        assert len(pack) == 1 or sum(lengths[row] for row in pack) <= tokens


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(100, 300))
def test_packs_are_few(lengths: list[int], tokens: int) -> None:
    """Best fit, longest first, needs at most 11/9 of the fewest there could be, and 4."""
    fewest = -(-sum(lengths) // tokens)
    assert len(packs(lengths, tokens=tokens, rows=len(lengths))) <= max(11 * fewest / 9 + 4, 2 * fewest)


def test_rows_alone_stay_in_order() -> None:
    assert packs([5, 1, 9, 2], tokens=None, rows=3) == [[0, 1, 2], [3]]


def test_lengths_like_those_of_real_mixtures_fill_their_packs() -> None:
    lengths = [20 + (number * 37) % 180 for number in range(256)]
    found = packs(lengths, tokens=1024, rows=256)
    assert sum(lengths) / (1024 * len(found)) > 0.97
