"""A base model's files of weights with the updates of its linears added, written one tensor at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from malora_cli.export.formats import Origin
from malora_cli.export.request import TORCH_DTYPES
from malora_cli.export.static import LowRank
from malora_cli.export.streamed import rewrite

#: Rows of a weight that an update is added to at a time.
_ROWS = 256


def write_shard(source: Path, target: Path, updates: Mapping[str, tuple[str, LowRank]], origin: Origin) -> set[str]:
    """Write one file of weights; the keys of all that were met."""
    met = set()
    dtype = None if origin.dtype is None else getattr(torch, TORCH_DTYPES[origin.dtype])

    names = origin.skeleton.state_dict().keys()

    def changed(stored: str, weight: Tensor) -> Tensor:
        key = _key_of(stored, origin.skeleton.base_model_prefix, names)
        kind = dtype or weight.dtype
        met.add(key)
        if (own := origin.weights.get(key.removesuffix(".weight"))) is not None:
            weight = own()
        if key not in updates:
            return weight
        name, one = updates[key]
        transposed = isinstance(origin.skeleton.get_submodule(name), Conv1D)
        return _added(weight, one, transposed=transposed, dtype=kind)

    rewrite(source, target, dtype, changed)
    return met


def _key_of(stored: str, prefix: str, names: Collection[str]) -> str:
    """The model's own name of a stored weight; older files leave its prefix out."""
    prefixed = f"{prefix}.{stored}"
    return prefixed if prefixed in names and stored not in names else stored


def _added(weight: Tensor, one: LowRank, *, transposed: bool, dtype: torch.dtype) -> Tensor:
    """The weight with its update, added in float32 and rounded once; some rows at a time, which stay in the cache."""
    left, right = (one.down_SI.T, one.up_OS.T) if transposed else (one.up_OS, one.down_SI)
    found = torch.empty(weight.shape, dtype=dtype)
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, start + _ROWS)
        found[rows] = torch.addmm(weight[rows].float(), left[rows], right)
    return found
