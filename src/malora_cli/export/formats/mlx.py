"""The format of mlx-lm's adapters, for Apple machines.

There an update is ``scale * (x @ lora_a) @ lora_b``: both factors lie transposed to PEFT's, and square ones would load
either way round and compute something else.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malora_cli.errors import ModelError
from malora_cli.export.formats._base import Format, Origin
from malora_cli.modeling import BaseModel
from malora_cli.modeling.rope import with_plain_rope
from malora_cli.recipe import ModelSettings
from malora_cli.results import write_json

if TYPE_CHECKING:
    from malora_cli.export.static import StaticLora

_CONFIG, _WEIGHTS = "adapter_config.json", "adapters.safetensors"

_IN_LAYER = re.compile(r".*\.layers\.(\d+)\.(.+)")


class MlxFormat(Format):
    """``adapters.safetensors`` and ``adapter_config.json``."""

    targets = ("lora",)

    def check(self, target: str, base: BaseModel, settings: ModelSettings, config: Mapping[str, Any]) -> None:
        """Warn of a base that mlx-lm would compute otherwise, with any adapter or none."""
        taken, rope = {"rope_theta": 10_000.0, "rope_scaling": None, **config}, with_plain_rope(config)
        if missing := [name for name in ("rope_theta", "rope_scaling") if rope.get(name, taken[name]) != taken[name]]:
            warnings.warn(
                f"'{base.name}' has its RoPE in rope_parameters alone (config.json), which mlx-lm 0.32 does not read: "
                f"write {' and '.join(f'{name}: {json.dumps(rope[name])}' for name in missing)} beside it there",
                stacklevel=2,
            )

    def files(self, target: str, base: BaseModel) -> list[str]:
        """The two."""
        return [_WEIGHTS, _CONFIG]

    def write(self, target: str, lora: StaticLora, origin: Origin, folder: Path) -> None:
        """Write the adapter.

        Raises:
            ModelError: Its linears are not the same ones in every layer.
        """
        from safetensors.torch import save_file

        [rank] = {one.rank for one in lora.values()}
        keys, layers = _by_layer(lora, origin)
        write_json(
            folder / _CONFIG,
            {
                "model": origin.named,
                "fine_tune_type": "lora",
                "num_layers": layers,
                "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": keys},
            },
        )
        weights = {}
        for name, one in lora.items():
            weights[f"{name}.lora_a"] = one.down_SI.T.contiguous()
            weights[f"{name}.lora_b"] = one.up_OS.T.contiguous()
        save_file(weights, folder / _WEIGHTS)


def _by_layer(lora: StaticLora, origin: Origin) -> tuple[list[str], int]:
    """The linears of a layer, and how many of the last layers have them."""
    found: dict[int, set[str]] = {}
    for name in lora:
        match = _IN_LAYER.fullmatch(name)
        if match is None:
            raise _not_the_same(f"{name} is in no layer")
        found.setdefault(int(match[1]), set()).add(match[2])
    last = origin.skeleton.config.get_text_config().num_hidden_layers
    same = all(keys == found[max(found)] for keys in found.values())
    if not same or sorted(found) != list(range(min(found), last)):
        raise _not_the_same("they differ from layer to layer")
    return sorted(found[max(found)]), len(found)


def _not_the_same(what: str) -> ModelError:
    return ModelError(
        f"mlx-lm adapts the same linears in all of the last layers, and of this LoRA {what}",
        where="--format mlx",
        fix="Use --format peft.",
    )


FORMAT = MlxFormat()
