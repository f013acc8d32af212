"""PEFT's own format, as every server of LoRAs reads it.

Servers read less than PEFT writes. SGLang scales by one ``lora_alpha / r`` and refuses regular expressions, vLLM
refuses DoRA, biases and further modules, converters keep one rank and one alpha. So there is one rank,
``lora_alpha == r``, and targets are names; what would need more is in the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from malora_cli.export.formats._base import Format, Origin
from malora_cli.modeling import BaseModel
from malora_cli.results.contents import ADAPTER_FILES

if TYPE_CHECKING:
    from torch import nn

    from malora_cli.export.static import StaticLora


class PeftFormat(Format):
    """``adapter_config.json`` and ``adapter_model.safetensors``."""

    targets = ("lora",)

    def files(self, target: str, base: BaseModel) -> list[str]:
        """The two."""
        return list(ADAPTER_FILES)

    def write(self, target: str, lora: StaticLora, origin: Origin, folder: Path) -> None:
        """Write the adapter."""
        from peft import LoraConfig
        from safetensors.torch import save_file

        [rank] = {one.rank for one in lora.values()}
        config = LoraConfig(
            r=rank,
            lora_alpha=rank,  # the scaling is in B already
            target_modules=suffixes(lora, origin.skeleton),
            task_type="CAUSAL_LM",
            base_model_name_or_path=origin.named,
            # Of the hub's own model; what else it is called is pinned by nobody.
            revision=origin.base.commit if origin.named == origin.base.location else None,
            inference_mode=True,
        )
        config.save_pretrained(str(folder))
        weights = {}
        for name, one in lora.items():
            weights[f"base_model.model.{name}.lora_A.weight"] = one.down_SI
            weights[f"base_model.model.{name}.lora_B.weight"] = one.up_OS
        save_file(weights, folder / ADAPTER_FILES[1], metadata={"format": "pt"})


def suffixes(names: Iterable[str], model: nn.Module) -> list[str]:
    """The shortest names that stand for these linears and for no other; their whole names where there are none."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    wanted = set(names)
    ends = {name.rpartition(".")[2] for name in wanted}
    linears = {name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    matched = {name for name in linears if any(name == end or name.endswith(f".{end}") for end in ends)}
    return sorted(ends if matched == wanted else wanted)


FORMAT = PeftFormat()
