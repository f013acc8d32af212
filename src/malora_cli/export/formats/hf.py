"""The whole model in transformers' format: the base model's shards with the updates added, one shard at a time."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers.pytorch_utils import Conv1D
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from malora_cli.errors import ModelError
from malora_cli.export.formats._base import Format, Origin
from malora_cli.export.request import TORCH_DTYPES
from malora_cli.export.static import LowRank, StaticLora
from malora_cli.export.streamed import rewrite
from malora_cli.modeling import BaseModel
from malora_cli.modeling.weights import weight_files
from malora_cli.results import read_json, write_json

_DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, told) for name, told in TORCH_DTYPES.items()}
#: Rows of a weight that an update is added to at a time.
_ROWS = 256


class HuggingFaceFormat(Format):
    """``config.json`` and safetensors, split as the base model's are."""

    targets = ("dense",)
    dtypes = tuple(_DTYPES)

    def check(self, target: str, origin: Origin) -> None:
        """Refuse a base whose files hold 4 or 8 bits: a sum has no place in them."""
        if getattr(origin.skeleton.config, "quantization_config", None) is not None:
            raise ModelError(
                f"the files of '{origin.base.name}' are quantised, and a whole model is written as they are",
                where="--to dense",
                fix="Use --to lora, and load it on the quantised base.",
            )

    def write(self, target: str, lora: StaticLora, origin: Origin, folder: Path) -> None:
        """Write the model; one weight and its update are in memory at a time."""
        source = folder_of(origin.base)
        updates = {self._key(name): (name, one) for name, one in lora.items()}
        left = {*updates, *map(self._key, origin.weights)}
        for file in weight_files(source):
            if file.suffix == ".json":
                shutil.copyfile(file, folder / file.name)
                continue
            left -= _write_shard(file, folder / file.name, updates, origin)
        if left:
            raise ModelError(
                f"{len(left)} of the adapted weights are not in its files, as {min(left)}",
                where=f"model '{origin.base.name}'",
                fix="Use --to lora.",
            )
        self._write_config(source, folder, origin)

    @staticmethod
    def _key(name: str) -> str:
        return f"{name}.weight"

    @staticmethod
    def _write_config(source: Path, folder: Path, origin: Origin) -> None:
        config = read_json(source / CONFIG_NAME)
        if origin.dtype is not None:
            config.pop("torch_dtype", None)
            config["dtype"] = TORCH_DTYPES[origin.dtype]
            index = folder / SAFE_WEIGHTS_INDEX_NAME
            if index.is_file():
                total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
                found = read_json(index)
                write_json(index, {**found, "metadata": {**found.get("metadata", {}), "total_size": total}})
        write_json(folder / CONFIG_NAME, config)
        if (source / GENERATION_CONFIG_NAME).is_file():
            shutil.copyfile(source / GENERATION_CONFIG_NAME, folder / GENERATION_CONFIG_NAME)
        for file in source.glob("*.py"):  # which config.json names, where the model comes with code
            shutil.copyfile(file, folder / file.name)


@cache
def folder_of(base: BaseModel) -> Path:
    """The folder where a base model's files lie; those of the hub are in its cache."""
    if base.commit is None:
        return Path(base.location)
    patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.py"]
    return Path(snapshot_download(base.location, revision=base.commit, allow_patterns=patterns))


def _write_shard(source: Path, target: Path, updates: Mapping[str, tuple[str, LowRank]], origin: Origin) -> set[str]:
    """Write one file of weights; the keys of all that were met."""
    met = set()
    dtype = None if origin.dtype is None else _DTYPES[origin.dtype]

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


FORMAT = HuggingFaceFormat()
