"""The whole model in transformers' format: the base model's shards with the updates added, one shard at a time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_INDEX_FILE

from malora_cli.errors import ModelError
from malora_cli.export.formats._base import Format, Origin
from malora_cli.export.request import TORCH_DTYPES
from malora_cli.modeling import BaseModel
from malora_cli.modeling.rope import with_plain_rope
from malora_cli.modeling.weights import weight_files
from malora_cli.recipe import ModelSettings
from malora_cli.results import read_json, write_json

if TYPE_CHECKING:
    from malora_cli.export.static import StaticLora

_GENERATION_CONFIG = "generation_config.json"


class HuggingFaceFormat(Format):
    """``config.json`` and safetensors, split as the base model's are."""

    targets = ("dense",)
    dtypes = tuple(TORCH_DTYPES)

    def check(self, target: str, base: BaseModel, settings: ModelSettings, config: Mapping[str, Any]) -> None:
        """Refuse a base whose files hold 4 or 8 bits: a sum has no place in them."""
        if config.get("quantization_config") is not None:
            raise ModelError(
                f"the files of '{base.name}' are quantised, and a whole model is written as they are",
                where="--to dense",
                fix="Use --to lora, and load it on the quantised base.",
            )

    def files(self, target: str, base: BaseModel) -> list[str]:
        """Those of the base model's weights, by their names, and its configuration."""
        weights = weight_files(Path(base.location)) if base.commit is None else [Path("*.safetensors")]
        return [*(file.name for file in weights), CONFIG_NAME]

    def write(self, target: str, lora: StaticLora, origin: Origin, folder: Path) -> None:
        """Write the model; one weight and its update are in memory at a time."""
        from malora_cli.export.merging import write_shard

        source = folder_of(origin.base)
        updates = {self._key(name): (name, one) for name, one in lora.items()}
        left = {*updates, *map(self._key, origin.weights)}
        for file in weight_files(source):
            if file.suffix == ".json":
                shutil.copyfile(file, folder / file.name)
                continue
            left -= write_shard(file, folder / file.name, updates, origin)
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
        config = with_plain_rope(read_json(source / CONFIG_NAME))
        if origin.dtype is not None:
            config.pop("torch_dtype", None)
            config["dtype"] = TORCH_DTYPES[origin.dtype]
            index = folder / SAFETENSORS_INDEX_FILE
            if index.is_file():
                total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
                found = read_json(index)
                write_json(index, {**found, "metadata": {**found.get("metadata", {}), "total_size": total}})
        write_json(folder / CONFIG_NAME, config)
        if (source / _GENERATION_CONFIG).is_file():
            shutil.copyfile(source / _GENERATION_CONFIG, folder / _GENERATION_CONFIG)
        for file in source.glob("*.py"):  # which config.json names, where the model comes with code
            shutil.copyfile(file, folder / file.name)


@cache
def folder_of(base: BaseModel) -> Path:
    """The folder where a base model's files lie; those of the hub are in its cache."""
    if base.commit is None:
        return Path(base.location)
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.py"]
    return Path(snapshot_download(base.location, revision=base.commit, allow_patterns=patterns))


FORMAT = HuggingFaceFormat()
