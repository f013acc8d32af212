"""GGUF, as llama.cpp and what is built on it read: a LoRA beside a base, or the base's own file with the updates added.

Source: the GGUF specification (github.com/ggml-org/ggml/blob/master/docs/gguf.md), section on adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, ReaderTensor

from malora_cli.errors import ModelError
from malora_cli.export.formats._base import Format, Origin
from malora_cli.modeling import BaseModel
from malora_cli.recipe import ModelSettings

if TYPE_CHECKING:
    from torch import Tensor

    from malora_cli.export.static import LowRank, StaticLora

#: Architectures in GGUF's words, by transformers' ``model_type``; these are tested.
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}
#: Of these, GGUF files hold the rows of q and k in another order than transformers does.
_PERMUTED = ("llama",)
_TYPES = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
}
_LORA, _MODEL = "adapter.gguf", "model.gguf"


class GgufFormat(Format):
    """One file: ``adapter.gguf`` or ``model.gguf``."""

    targets = ("lora", "dense")
    dtypes = tuple(_TYPES)

    def check(self, target: str, base: BaseModel, settings: ModelSettings, config: Mapping[str, Any]) -> None:
        """Refuse architectures whose tensors were not seen in llama.cpp, and whole models whose base is no GGUF."""
        kind = config.get("model_type")
        if kind not in _ARCHITECTURES:
            raise ModelError(
                f"how GGUF files name and order the weights of a '{kind}' model is not known here",
                where="--format gguf",
                fix="Export --to lora --format peft, and convert it with llama.cpp's convert_lora_to_gguf.py.",
            )
        if target == "dense" and base.gguf is None:
            raise ModelError(
                f"'{base.name}' is not a GGUF file, and a whole model is written from the base's own",
                where="--format gguf",
                fix="Export --to dense --format hf, and convert it with llama.cpp's convert_hf_to_gguf.py.",
            )
        if target == "dense" and settings.quantise is not None:
            raise ModelError(
                f"the run trained on its base in {settings.quantise}, which is not what the file holds",
                where="--format gguf",
                fix="Add --onto original to take the file's own weights, or use --to lora.",
            )

    def files(self, target: str, base: BaseModel) -> list[str]:
        """The one."""
        return [_LORA if target == "lora" else _MODEL]

    def write(self, target: str, lora: StaticLora, origin: Origin, folder: Path) -> None:
        """Write the file."""
        named = _Names(origin)
        updates = {named.of(name): named.in_order(name, one) for name, one in lora.items()}
        kind = _TYPES[origin.dtype] if origin.dtype else None
        if target == "lora":
            _write_lora(updates, named.architecture, _TYPES[origin.dtype or "f32"], origin.task, folder / _LORA)
        else:
            assert origin.base.gguf is not None
            _write_model(updates, origin.base.gguf, kind, folder / _MODEL)


class _Names:
    """What GGUF files call the linears of a model, and the order in which they hold their rows."""

    def __init__(self, origin: Origin) -> None:
        config = origin.skeleton.config.get_text_config()
        self.architecture = _ARCHITECTURES[origin.skeleton.config.model_type]
        by_name = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
        self._map = gguf.get_tensor_name_map(by_name[self.architecture], config.num_hidden_layers)
        self._heads = config.num_attention_heads
        self._kv_heads = getattr(config, "num_key_value_heads", None) or self._heads

    def of(self, linear: str) -> str:
        """Name of a linear's weight."""
        name = self._map.get_name(linear)
        if name is None:
            raise ModelError(
                f"GGUF files of '{self.architecture}' models have no name for {linear}",
                where="--format gguf",
                fix="Use --format peft.",
            )
        return f"{name}.weight"

    def in_order(self, linear: str, one: LowRank) -> LowRank:
        """An update with its rows in the order of the file.

        Of q and k of Llamas: transformers rotates the first half of a head against the second, llama.cpp even rows
        against odd ones.
        """
        heads = {"q_proj": self._heads, "k_proj": self._kv_heads}.get(linear.rpartition(".")[2])
        if heads is None or self.architecture not in _PERMUTED:
            return one
        rows, rank = one.up_OS.shape
        up = one.up_OS.view(heads, 2, rows // heads // 2, rank).transpose(1, 2).reshape(rows, rank)
        return replace(one, up_OS=up.contiguous())


def _write_lora(
    updates: Mapping[str, LowRank], architecture: str, kind: GGMLQuantizationType, task: str | None, file: Path
) -> None:
    [rank] = {one.rank for one in updates.values()}
    writer = GGUFWriter(file, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))  # llama.cpp multiplies by alpha / rank
    if task is not None:
        writer.add_string(gguf.Keys.Adapter.LORA_TASK_NAME, task)
    for name, one in updates.items():
        for part, weight in (("lora_a", one.down_SI), ("lora_b", one.up_OS)):
            writer.add_tensor(f"{name}.{part}", _stored(_array(weight), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_model(updates: Mapping[str, LowRank], source: Path, kind: GGMLQuantizationType | None, file: Path) -> None:
    """Copy a file with its keys and tensors byte for byte, but for the tensors that are updated."""
    reader = GGUFReader(source)
    if missing := set(updates) - {tensor.name for tensor in reader.tensors}:
        raise ModelError(f"it has no tensor {min(missing)}", where=str(source), fix="Use --to lora.")
    writer = GGUFWriter(file, str(reader.fields["general.architecture"].contents()), endianess=reader.endianess)
    writer.data_alignment = reader.alignment
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            sub = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    # Made once for its size and once more to be written, so that one tensor at a time is in memory.
    for tensor in reader.tensors:
        array, stored = _data(tensor, updates.get(tensor.name), kind)
        writer.add_tensor_info(tensor.name, array.shape, array.dtype, array.nbytes, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(_data(tensor, updates.get(tensor.name), kind)[0])
    writer.close()


def _data(
    tensor: ReaderTensor, one: LowRank | None, kind: GGMLQuantizationType | None
) -> tuple[np.ndarray[Any, Any], GGMLQuantizationType]:
    """What is written of a tensor, and its type: its own bytes, or the sum in the type asked for.

    Left to itself, a sum takes the tensor's own type, and float16 for those that are made by more than rounding.
    """
    if one is None:
        return tensor.data, tensor.tensor_type
    own = tensor.tensor_type if tensor.tensor_type in _TYPES.values() else GGMLQuantizationType.F16
    stored = own if kind is None else kind  # F32 is 0
    weight = gguf.dequantize(tensor.data, tensor.tensor_type)
    return _stored((weight + _array(one.up_OS) @ _array(one.down_SI)).astype(np.float32), stored), stored


def _array(weight: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(weight.numpy())


def _stored(weight: np.ndarray[Any, Any], kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = gguf.quantize(weight, kind)
    return found


FORMAT = GgufFormat()
