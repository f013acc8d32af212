"""The base model's weights in a bundle: its own files as they are, or a GGUF file's weights as one."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from malora_cli.export.streamed import DTYPES, Header, rewrite
from malora_cli.modeling.weights import weight_files
from malora_cli.results import write_json

#: What one file of weights is called: beside a `SAFE_WEIGHTS_NAME` no index would be read.
_ONLY = "model-00001-of-00001.safetensors"


@dataclass(frozen=True)
class Stored:
    """What a file of weights says of itself.

    Args:
        name: The file's.
        dtypes: Number format of each tensor, as safetensors calls it.
        size: Bytes of all tensors.
    """

    name: str
    dtypes: dict[str, str]
    size: int

    @classmethod
    def of(cls, file: Path) -> Stored:
        """Read a file's header, and nothing else."""
        header = Header.of(file)
        return cls(file.name, {name: about["dtype"] for name, about in header.about.items()}, header.size)


def base_shards(source: Path) -> list[Path]:
    """The files that a base model's weights lie in, the index left out."""
    return [file for file in weight_files(source) if file.suffix != ".json"]


def write_shards(files: Iterable[Path], source: Path, folder: Path, dtype: torch.dtype | None) -> list[Stored]:
    """Copy a base model's files of weights.

    Args:
        files: See `base_shards`.
        source: The base model's folder.
        folder: The bundle's.
        dtype: Number format that weights are brought to where it is another; None copies the files as they are.

    Returns:
        What was written.
    """
    written = []
    for file in files:
        name = _ONLY if file.name == SAFE_WEIGHTS_NAME else str(file.relative_to(source))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if dtype is None or {DTYPES.get(kind) for kind in Stored.of(file).dtypes.values()} == {dtype}:
            shutil.copyfile(file, folder / name)
        else:
            rewrite(file, folder / name, dtype)
        written.append(replace(Stored.of(folder / name), name=name))
    return written


def dtype_of(shards: Iterable[Stored]) -> str | None:
    """What transformers calls the number format of some files' weights."""
    kinds = (DTYPES[kind] for shard in shards for kind in shard.dtypes.values() if kind in DTYPES)
    return next((str(kind).removeprefix("torch.") for kind in kinds), None)


def write_index(folder: Path, files: Iterable[Stored]) -> None:
    """Write the index that says which file each weight lies in."""
    files = list(files)
    index = {
        "metadata": {"total_size": sum(file.size for file in files)},
        "weight_map": {name: file.name for file in files for name in sorted(file.dtypes)},
    }
    write_json(folder / SAFE_WEIGHTS_INDEX_NAME, index)
