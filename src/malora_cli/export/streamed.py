"""Safetensors files written tensor by tensor, which the library does not do: it takes all of a file at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

#: Number formats of floating-point weights in a file's header.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
#: The header is filled up to whole words of so many bytes.
_WORD = 8


@dataclass(frozen=True)
class Header:
    """What a file of weights says of itself.

    Args:
        about: ``dtype``, ``shape`` and ``data_offsets`` of each tensor, in bytes behind the header.
        metadata: What else was noted in it.
    """

    about: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, file: Path) -> Header:
        """Read a file's header, and nothing else."""
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header: dict[str, Any] = json.loads(opened.read(length))
        return cls(header, header.pop("__metadata__", None) or {})

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
        return len(text).to_bytes(8, "little") + text


def rewrite(
    source: Path,
    target: Path,
    dtype: torch.dtype | None,
    change: Callable[[str, Tensor], Tensor] = lambda _name, weight: weight,
) -> None:
    """Write a file of weights anew; one tensor is in memory at a time.

    Args:
        source: The file.
        target: Where to.
        dtype: Number format of floating-point tensors; None leaves each its own.
        change: What becomes of a tensor of a name, of the same shape; it is rounded once, to the number format.
    """
    header = Header.of(source)
    if dtype is not None:
        header = header.brought_to(dtype)
    in_order = sorted(header.about, key=lambda name: header.about[name]["data_offsets"])
    with safe_open(source, framework="pt") as tensors, target.open("wb") as file:
        file.write(header.encoded())
        for name in in_order:
            weight = tensors.get_tensor(name)
            kind = DTYPES.get(header.about[name]["dtype"], weight.dtype)
            changed = change(name, weight)
            assert changed.shape == weight.shape, name
            file.write(changed.to(kind).reshape(-1).view(torch.uint8).numpy().data)
