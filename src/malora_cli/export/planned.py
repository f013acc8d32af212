"""What an export is going to be: its files, rank and size, from the headers of files alone. Without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from huggingface_hub.constants import CONFIG_NAME
from safetensors import SafetensorError, safe_open

from malora_cli.errors import ModelError, RecipeError, RunError
from malora_cli.export.request import TORCH_DTYPES, Request
from malora_cli.modeling import BaseModel
from malora_cli.modeling.weights import weight_files
from malora_cli.recipe import ModelSettings
from malora_cli.results import free_bytes
from malora_cli.results.contents import ADAPTER_FILES

_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32}
_MIB = 2**20
#: Values that q8_0 rounds together.
_BLOCK = 32
#: How an adapter's file names the first and the last factor of a linear's update: a mixture's, and PEFT's.
_FACTORS = ((".malora_down", ".malora_up"), (".lora_A.weight", ".lora_B.weight"))


@dataclass(frozen=True)
class Planned:
    """An export before it is made.

    Args:
        names: What is written, by name; one of them has the folder to itself.
        rank: Its rank; None where what is written is no LoRA and has none added.
        exact_rank: The rank at which nothing but the routing is left out.
        bytes_each: Size of the weights of each, about.
        files: Names of the files of each.
        exactness: How near it is to the run, in words.
    """

    names: Sequence[str]
    rank: int | None
    exact_rank: int | None
    bytes_each: int
    files: Sequence[str]
    exactness: str

    @property
    def bytes(self) -> int:
        """Size of all weights, about."""
        return self.bytes_each * len(self.names)

    def check_room(self, folder: Path) -> None:
        """Make sure that there is room for it.

        Raises:
            RunError: There is not.
        """
        free = free_bytes(folder.absolute().parent)
        if free < self.bytes:
            raise RunError(
                f"the export takes about {self.bytes / _MIB:,.0f} MiB, and {free / _MIB:,.0f} MiB are free",
                where=str(folder),
                fix="Free some space there, or name another folder by --out FOLDER.",
            )


@dataclass(frozen=True)
class Update:
    """The update of one linear, by the shapes of its factors."""

    rank: int
    inputs: int
    outputs: int


def updates_in(adapter: Path) -> list[Update]:
    """The updates of an adapter, at the rank that each has for gates held fixed.

    Args:
        adapter: Its folder.

    Raises:
        ModelError: The file of its weights cannot be read.
    """
    shapes = _shapes(adapter / ADAPTER_FILES[1])
    found = []
    for down, up in _FACTORS:
        for name, (rank, inputs) in ((name, shape) for name, shape in shapes.items() if name.endswith(down)):
            found.append(Update(rank, inputs, shapes[name.removesuffix(down) + up][0]))
    return found


def rank_of(request: Request, updates: Sequence[Update]) -> tuple[int, int]:
    """The rank of what is asked for, and the exact one.

    Raises:
        RecipeError: It is above the exact one, or its rows cannot be rounded in the number format asked for.
    """
    exact = max(one.rank for one in updates)
    if request.rank is not None and request.rank > exact:
        fix = "Leave it out for the exact LoRA."
        raise RecipeError(f"{request.rank} is above the exact rank, {exact}", where="--rank", fix=fix)
    rank = request.rank or exact
    odd = any(one.inputs % _BLOCK for one in updates) or (request.to == "lora" and rank % _BLOCK)
    if request.dtype == "q8_0" and odd:
        what = f"rows of q8_0 are multiples of {_BLOCK} long, which the rank ({rank}) or the model's inputs are not"
        raise RecipeError(what, where="--dtype", fix="Use f16.")
    return rank, exact


def bytes_of(request: Request, rank: int, updates: Sequence[Update], base: BaseModel, settings: ModelSettings) -> int:
    """Size of the weights of a LoRA or of a whole model, about.

    Raises:
        ModelError: The base model cannot be had.
    """
    if request.to == "lora":
        return int(sum(rank * (one.inputs + one.outputs) for one in updates) * _BYTES[request.dtype or "f32"])
    if request.form == "gguf" and base.gguf is not None:
        added = sum(one.inputs * one.outputs for one in updates)
        return int(base.gguf.stat().st_size + added * _BYTES[request.dtype or "f16"])
    dtype = request.dtype
    if request.to == "bundle" and base.gguf is not None:  # whose weights are written as the run had them
        dtype = next((short for short, name in TORCH_DTYPES.items() if name == settings.dtype), None)
    files = _files_of(base)
    if files is None:
        from malora_cli.modeling import empty_base

        return int(empty_base(base, settings).num_parameters() * _BYTES[dtype or "bf16"])
    if dtype is None:
        return sum(file.stat().st_size for file in files)
    values = sum(prod(shape) for file in files for shape in _shapes(file).values())
    return int(values * _BYTES[dtype])


def _files_of(base: BaseModel) -> list[Path] | None:
    """The files that its weights lie in; None where those of a hub model are not on this machine."""
    folder = Path(base.location)
    if base.commit is not None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(base.location, CONFIG_NAME, revision=base.commit)
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    try:
        return [file for file in weight_files(folder) if file.suffix != ".json"]
    except ModelError:
        if base.commit is None:
            raise
        return None


def _shapes(file: Path) -> Mapping[str, Sequence[int]]:
    """The shapes of a file's tensors by name; its header is read, and nothing else."""
    try:
        with safe_open(file, framework="np") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ModelError(f"it cannot be read ({error})", where=str(file), fix="Copy it again.") from error
