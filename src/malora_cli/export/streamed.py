"""Safetensors files written tensor by tensor, which the library does not do: it takes all of a file at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

#: Number formats of floating-point weights in a file's header.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
#: The header is filled up to whole words of so many bytes, and follows its own length in one.
_WORD = 8
#: Bytes that are copied, and values that are computed, at a time; they stay in a processor's cache.
_BLOCK, _VALUES = 1 << 20, 1 << 19


@dataclass(frozen=True)
class Header:
    """What a file of weights says of itself.

    Args:
        about: ``dtype``, ``shape`` and ``data_offsets`` of each tensor, in bytes behind the header.
        metadata: What else was noted in it.
        begin: Where in the file the tensors begin, in bytes.
    """

    about: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, str]
    begin: int = 0

    @classmethod
    def of(cls, file: Path) -> Header:
        """Read a file's header, and nothing else."""
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(_WORD), "little")
            header: dict[str, Any] = json.loads(opened.read(length))
        return cls(header, header.pop("__metadata__", None) or {}, _WORD + length)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return max((about["data_offsets"][1] for about in self.about.values()), default=0)

    def brought_to(self, dtype: torch.dtype) -> Header:
        """The header of the same tensors with floating-point ones in another number format, the widest first."""
        kinds = {
            name: _NAMES[dtype] if about["dtype"] in DTYPES else str(about["dtype"])
            for name, about in self.about.items()
        }
        sizes = {name: self._bytes(name, kinds[name]) for name in kinds}
        found, end = {}, 0
        for name in sorted(kinds, key=lambda name: -sizes[name][0]):  # so that each lies at a multiple of its width
            begin, end = end, end + sizes[name][1]
            found[name] = {"dtype": kinds[name], "shape": self.about[name]["shape"], "data_offsets": [begin, end]}
        return Header(found, self.metadata)

    def _bytes(self, name: str, kind: str) -> tuple[int, int]:
        """Bytes of one value and of all of a tensor, in a number format."""
        about = self.about[name]
        begin, end = about["data_offsets"]
        values = torch.Size(about["shape"]).numel()
        if kind not in DTYPES:  # and so keeps its number format, of less than a byte perhaps
            return max(1, (end - begin) // max(values, 1)), end - begin
        return DTYPES[kind].itemsize, DTYPES[kind].itemsize * values

    def encoded(self) -> bytes:
        """The header as it stands in a file, with its length."""
        text = json.dumps({"__metadata__": {"format": "pt", **self.metadata}, **self.about}).encode()
        text += b" " * (-len(text) % _WORD)
        return len(text).to_bytes(_WORD, "little") + text


@dataclass(frozen=True)
class Change:
    """What becomes of a tensor, whose shape stays.

    Args:
        weight: Makes what stands in its place; None leaves what is stored.
        add: Adds to some of its rows, in place and in float32; told the rows, and which they are.
    """

    weight: Callable[[], Tensor] | None = None
    add: Callable[[Tensor, slice], object] | None = None


def rewrite(
    source: Path,
    target: Path,
    dtype: torch.dtype | None,
    change: Callable[[str], Change | None] = lambda _name: None,
) -> None:
    """Write a file of weights anew; some rows are in memory at a time, and what is not changed is copied.

    Args:
        source: The file.
        target: Where to.
        dtype: Number format of floating-point tensors; None leaves each its own.
        change: What becomes of the tensor of a name; it is rounded once, to the number format.
    """
    old = Header.of(source)
    new = old if dtype is None else old.brought_to(dtype)
    with source.open("rb") as stored, target.open("wb") as file:
        file.write(new.encoded())
        for name in sorted(new.about, key=lambda name: new.about[name]["data_offsets"]):
            about, kind, changed = old.about[name], new.about[name]["dtype"], change(name)
            stored.seek(old.begin + about["data_offsets"][0])
            if changed is None and kind == about["dtype"]:
                for part in _bytes(stored, about):
                    file.write(part)
                continue
            rows = _rows(stored, about) if changed is None or changed.weight is None else _rows_of(changed.weight())
            add = None if changed is None else changed.add
            for part in _rounded(rows, about["shape"], DTYPES[kind], add):
                file.write(part)


def _bytes(file: BinaryIO, about: Mapping[str, Any]) -> Iterator[memoryview]:
    """A tensor as it is stored, from where the file stands."""
    begin, end = about["data_offsets"]
    buffer = memoryview(bytearray(min(_BLOCK, end - begin)))
    for start in range(begin, end, _BLOCK):
        part = buffer[: min(_BLOCK, end - start)]
        _read(file, part)
        yield part


def _rows(file: BinaryIO, about: Mapping[str, Any]) -> Iterator[tuple[slice, Tensor]]:
    """The same as numbers, some rows at a time; they hold until the next."""
    dtype, (count, *inner) = DTYPES[about["dtype"]], about["shape"] or [1]
    width = prod(inner)
    each = max(1, _VALUES // max(width, 1))
    buffer = bytearray(min(each, count) * width * dtype.itemsize)
    for start in range(0, count if width else 0, each):
        rows = slice(start, min(start + each, count))
        values = (rows.stop - start) * width
        _read(file, memoryview(buffer)[: values * dtype.itemsize])
        yield rows, torch.frombuffer(buffer, dtype=dtype, count=values).view(-1, *inner)


def _rows_of(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    each = max(1, _VALUES // max(weight[:1].numel(), 1))
    for start in range(0, len(weight), each):
        rows = slice(start, min(start + each, len(weight)))
        yield rows, weight[rows]


def _rounded(
    parts: Iterable[tuple[slice, Tensor]],
    shape: Sequence[int],
    dtype: torch.dtype,
    add: Callable[[Tensor, slice], object] | None,
) -> Iterator[memoryview]:
    """Rows with what is added to them, rounded once; in memory that is used again, which stays in the cache."""
    exact, found = (torch.empty(0, dtype=kind) for kind in (torch.float32, dtype))
    for rows, part in parts:
        assert list(part.shape[1:]) == list(shape[1:])
        if add is not None:
            part = exact.resize_(part.shape).copy_(part)
            add(part, rows)
        yield found.resize_(part.shape).copy_(part).reshape(-1).view(torch.uint8).numpy().data


def _read(file: BinaryIO, part: memoryview) -> None:
    if file.readinto(part) < len(part):  # type: ignore[attr-defined]
        raise OSError(f"{file.name} ends early")
