"""A base model's files of weights with the updates of its linears added, written one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from malora_cli.adapters.product import add_product
from malora_cli.export.formats import Origin
from malora_cli.export.request import TORCH_DTYPES
from malora_cli.export.static import LowRank
from malora_cli.export.streamed import Change, rewrite


def write_shard(source: Path, target: Path, updates: Mapping[str, tuple[str, LowRank]], origin: Origin) -> set[str]:
    """Write one file of weights; the keys of all that were met."""
    met = set()
    dtype = None if origin.dtype is None else getattr(torch, TORCH_DTYPES[origin.dtype])

    names = origin.skeleton.state_dict().keys()

    def change(stored: str) -> Change | None:
        key = _key_of(stored, origin.skeleton.base_model_prefix, names)
        met.add(key)
        own, add = origin.weights.get(key.removesuffix(".weight")), None
        if key in updates:
            name, one = updates[key]
            add = _adding(one, transposed=isinstance(origin.skeleton.get_submodule(name), Conv1D))
        return None if own is None and add is None else Change(own, add)

    rewrite(source, target, dtype, change)
    return met


def _key_of(stored: str, prefix: str, names: Collection[str]) -> str:
    """The model's own name of a stored weight; older files leave its prefix out."""
    prefixed = f"{prefix}.{stored}"
    return prefixed if prefixed in names and stored not in names else stored


def _adding(one: LowRank, *, transposed: bool) -> Callable[[Tensor, slice], object]:
    """What adds an update to some rows of its weight."""
    left, right = (one.down_SI.T, one.up_OS) if transposed else (one.up_OS, one.down_SI.T)
    return lambda rows_RI, rows: add_product(rows_RI, left[rows], right)
